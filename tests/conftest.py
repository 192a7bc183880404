"""Fixtures and rules for all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.rankpool import RankPool, take_down_distributed, without_launcher

# Before torch is imported: two cores are shared by several ranks, and DeepSpeed reads its accelerator at import.
_DEFAULTS = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
_FIXED = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
_environment = _DEFAULTS | without_launcher(os.environ) | _FIXED
os.environ.clear()
os.environ.update(_environment)


class ByFile(LoadScopeScheduling):
    """Gives whole files to workers, whose tests share what takes long to make; those on SLURM share one cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/slurm" if file.startswith("tests/slurm/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How `-n 2` shares out the tests, in the order of :func:`pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs longest in one piece comes first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/slurm/"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """A command that was called in this process leaves the handlers of one that ends now."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _process_groups() -> Iterator[None]:
    """A run in this process leaves its process groups behind, as Lightning does until the process ends."""
    yield
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        take_down_distributed()


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    """Rank processes that live as long as the test session; see :class:`tests.rankpool.RankPool`."""
    with RankPool() as pool:
        yield pool
