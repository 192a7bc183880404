"""The pool of ranks: fresh groups in the same processes, failures told by rank, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rankpool import RankError, RankPool, RankTimeoutError


@pytest.fixture(scope="module")
def breakable_pool() -> Iterator[RankPool]:
    """A pool of this file's own that starts at once: it is killed and restarted, which the shared one is spared."""
    with RankPool(preloaded_modules=()) as pool:
        yield pool


def facts() -> dict[str, Any]:
    return {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")}


def sum_of_ranks() -> float:
    import torch

    torch.distributed.init_process_group("gloo")
    value = torch.tensor(float(torch.distributed.get_rank()))
    torch.distributed.all_reduce(value)
    return value.item()


def pollute() -> None:
    os.environ["LEFT_BEHIND"] = "1"
    os.chdir("/")
    signal.signal(signal.SIGUSR1, lambda number, frame: None)


def surroundings() -> tuple[str | None, str, bool]:
    return os.environ.get("LEFT_BEHIND"), os.getcwd(), signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def fail_in_rank(number: int) -> None:
    if int(os.environ["RANK"]) == number:
        raise ValueError("this rank was told to fail")
    time.sleep(60)


def exit_in_rank(number: int) -> None:
    if int(os.environ["RANK"]) == number:
        os._exit(7)


def train_with_deepspeed(stage: int, *, steps: int = 3) -> list[float]:
    """Losses, averaged over the ranks, of a small model under plain DeepSpeed; the global batch is always 8 rows."""
    import deepspeed
    import torch

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed("gloo", verbose=False)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    config = {
        "train_micro_batch_size_per_gpu": 8 // world_size,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    torch.manual_seed(0)
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=stage == 3):
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0, enabled=stage == 3):
        for number, parameter in enumerate(model.parameters()):
            parameter.data.copy_(torch.linspace(-0.5, 0.5 + 0.1 * number, parameter.numel()).view_as(parameter))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    rows = torch.linspace(-1, 1, 32).view(8, 4).chunk(world_size)[rank]  # (8 / world_size, 4)
    losses = []
    for _ in range(steps):
        loss = (engine(rows) - 1.0).pow(2).mean()
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone() / world_size
        torch.distributed.all_reduce(mean)
        losses.append(mean.item())
    engine.destroy()
    return losses


def test_ranks_know_their_place_and_get_a_new_port_each_call(rank_pool: RankPool) -> None:
    first, second = rank_pool.run(facts), rank_pool.run(facts)
    assert [(f["RANK"], f["LOCAL_RANK"], f["WORLD_SIZE"], f["LOCAL_WORLD_SIZE"]) for f in first] == [
        ("0", "0", "2", "2"),
        ("1", "1", "2", "2"),
    ]
    assert first[0]["MASTER_PORT"] == first[1]["MASTER_PORT"]
    assert second[0]["MASTER_PORT"] != first[0]["MASTER_PORT"]


def test_process_groups_of_changing_world_sizes_in_the_same_processes(rank_pool: RankPool) -> None:
    before = rank_pool.run(os.getpid)
    assert [rank_pool.run(sum_of_ranks, world_size=size)[0] for size in (2, 1, 4, 2)] == [1.0, 0.0, 6.0, 1.0]
    assert rank_pool.run(os.getpid) == before


def test_deepspeed_engines_of_changing_stages_and_world_sizes_in_the_same_processes(rank_pool: RankPool) -> None:
    reference = rank_pool.run(train_with_deepspeed, 0, world_size=1)[0]
    for stage, world_size in [(1, 2), (3, 2), (2, 1), (3, 4), (3, 2), (2, 2)]:
        for losses in rank_pool.run(train_with_deepspeed, stage, world_size=world_size):
            assert losses == pytest.approx(reference, abs=1e-6), (stage, world_size)


def test_environment_directory_and_signal_handlers_are_put_back(rank_pool: RankPool) -> None:
    before = rank_pool.run(surroundings)
    rank_pool.run(pollute)
    assert rank_pool.run(surroundings) == before


def test_a_failing_rank_is_named_and_the_ranks_that_wait_for_it_are_ended(breakable_pool: RankPool) -> None:
    with pytest.raises(
        RankError, match=r"(?s)rank 1 of 2: Traceback.*ValueError: this rank was told to fail"
    ) as failure:
        breakable_pool.run(fail_in_rank, 1)
    assert failure.value.rank == 1
    assert len(breakable_pool.run(facts)) == 2


def test_ranks_survive_a_failure_that_all_of_them_report(breakable_pool: RankPool) -> None:
    before = breakable_pool.run(os.getpid)
    with pytest.raises(RankError, match=r"(?s)rank [01] of 2: .*JSONDecodeError.*rank [01] of 2: .*JSONDecodeError"):
        breakable_pool.run(json.loads, "{")
    assert breakable_pool.run(os.getpid) == before


def test_a_rank_that_dies_is_named_and_replaced(breakable_pool: RankPool) -> None:
    with pytest.raises(RankError, match="rank 0 of 2: the process died with status 7"):
        breakable_pool.run(exit_in_rank, 0)
    assert len(breakable_pool.run(os.getpid)) == 2


def test_a_rank_that_hangs_is_ended_at_the_timeout(breakable_pool: RankPool) -> None:
    before = breakable_pool.run(os.getpid)
    with pytest.raises(RankTimeoutError, match=r"rank 0 of 1 did not return in 0\.5 s"):
        breakable_pool.run(time.sleep, 60, world_size=1, timeout_seconds=0.5)
    assert set(breakable_pool.run(os.getpid)).isdisjoint(before)
