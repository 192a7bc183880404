"""Fixtures and rules for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rankpool import RankPool, without_launcher

# Before torch is imported: two cores are shared by several ranks, and DeepSpeed reads its accelerator at import.
_DEFAULTS = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
_FIXED = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
_environment = _DEFAULTS | without_launcher(os.environ) | _FIXED
os.environ.clear()
os.environ.update(_environment)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    """Rank processes that live as long as the test session; see :class:`tests.rankpool.RankPool`."""
    with RankPool() as pool:
        yield pool
