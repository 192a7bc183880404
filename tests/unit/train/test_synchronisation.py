"""The loop reads no tensor between logged steps: on a GPU each such reading would wait for all work before it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.train import bad_steps
from pipeline.train.module import PretrainModule
from pipeline.train.run import train
from tests.runs import load, tiny_corpus, write_config

NUM_STEPS = 8
OVERRIDES = (
    *("--train.steps", str(NUM_STEPS), "--monitor.log_every_steps", "4", "--train.micro_batch_size", "4"),
    *("--checkpoint.every_steps", "100", "--evaluation.every_steps", "0"),
)
# What copies numbers from a device to the host.
READINGS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class Readings(TorchDispatchMode):
    """Counts the operators that read a tensor, by the step in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.by_step: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READINGS:
            self.by_step[self.step] += 1
        return func(*args, **(kwargs or {}))


def test_tensors_are_read_at_logged_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = Readings()
    begin_step = PretrainModule._begin_step

    def begin(self: PretrainModule, batch: Any) -> None:
        readings.step = self.step + 1
        begin_step(self, batch)

    monkeypatch.setattr(PretrainModule, "_begin_step", begin)
    monkeypatch.setattr(bad_steps, "decides_on_device", lambda *_: True)  # as on CUDA
    corpus = tiny_corpus(tmp_path / "corpus")
    with readings:
        train(load(write_config(tmp_path, corpus.directory), *OVERRIDES))
    assert readings.step == NUM_STEPS
    assert {step for step in readings.by_step if step} == {1, 4, 8}, "logged are the first, every fourth, the last"


def test_a_reading_would_be_noticed() -> None:
    with Readings() as readings:
        torch.ones(()).item()
        float(torch.ones(2).sum())
        bool(torch.ones(3).nonzero().numel())
    assert readings.by_step == {0: 3}
