"""Compiling a run of many stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pipeline.config.derived import batch_plan
from pipeline.config.run import BatchWarmupConfig, RunConfig, TrainConfig
from pipeline.train.compilation import compile_step
from pipeline.train.module import PretrainModule


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


@pytest.mark.parametrize(("tokens", "limit"), [(0.0, 8), (1e6, 2 * 32 + 6)])
def test_every_stage_may_be_compiled(tokens: float, limit: int) -> None:
    warmup = BatchWarmupConfig(tokens=tokens, start=16, increment=16)
    config = RunConfig(train=TrainConfig(global_batch_size=512, strategy="ddp", batch_warmup=warmup))
    plan = batch_plan(config, 2)
    compile_step(PretrainModule(nn.Linear(2, 2), config, plan, 0))
    assert torch._dynamo.config.recompile_limit == limit
