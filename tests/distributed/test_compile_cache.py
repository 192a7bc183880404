"""Compiled kernels outlive the process that compiled them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config.run import TrainConfig
from pipeline.models.segment_attention import segment_attention
from pipeline.train.compilation import prepare_compiler
from tests.rankpool import RankPool


def _attend(weight: Tensor, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """A step in small: a product, the opaque operator, something to fuse."""
    query, key, value = (hidden @ weight).view(8, 3, 2, 4).unbind(1)
    return torch.sin(segment_attention(query, key, value, cu_seqlens, cu_seqlens, None, 0.0, True, 0.5)).square().sum()


def _compile_as_rank(rank: int, directory: str) -> dict[str, int] | None:
    """Compile on one rank only, with no helpers that take longer to start; what torch counted of its cache."""
    if os.environ["RANK"] != str(rank):
        return None
    from torch._dynamo.utils import counters

    prepare_compiler(TrainConfig(compile_cache=directory), torch.device("cpu"))
    torch._dynamo.reset()
    counters.clear()
    loss = torch.compile(_attend, fullgraph=True, dynamic=False)
    with torch.no_grad(), torch._inductor.config.patch(compile_threads=1, cpp_cache_precompile_headers=False):
        loss(torch.ones(4, 24), torch.ones(8, 4), torch.tensor([0, 5, 8], dtype=torch.int32))
    return {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.proof
def test_another_process_finds_what_the_first_has_compiled(rank_pool: RankPool, tmp_path: Path) -> None:
    (first,) = rank_pool.run(_compile_as_rank, 0, str(tmp_path), world_size=1, timeout_seconds=300)
    assert first == {"hit": 0, "miss": 1, "bypass": 0}
    _, second = rank_pool.run(_compile_as_rank, 1, str(tmp_path), world_size=2, timeout_seconds=300)
    assert second == {"hit": 1, "miss": 0, "bypass": 0}
