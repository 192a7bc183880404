"""Clocks and `pretrain bench` on several ranks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.train import module
from pipeline.train.bench import bench
from tests.rankpool import RankPool
from tests.runs import column, load, run_rank, tiny_corpus, write_config

SLEEP_SECONDS = 0.15
ONE_STEP_A_LINE = ["--train.steps", "5", "--checkpoint.every_steps", "100", "--evaluation.every_steps", "0"]


def run_with_a_slow_rank(config_path: str, overrides: list[str], slow_rank: int) -> None:
    """Train; the forward pass of one rank takes longer."""
    original = module.PretrainModule.loss_sums
    from pipeline.base.ranks import rank_facts

    def slow(*args: Any) -> Any:
        time.sleep(SLEEP_SECONDS)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        if rank_facts().rank == slow_rank:
            patch.setattr(module.PretrainModule, "loss_sums", slow)
        run_rank(config_path, overrides)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_waiting_for_a_slow_rank_is_communication(strategy: str, rank_pool: RankPool, tmp_path: Path) -> None:
    tiny_corpus(tmp_path / "corpus")
    overrides = [*ONE_STEP_A_LINE, "--train.strategy", strategy, "--train.micro_batch_size", "4"]
    config = str(write_config(tmp_path, tmp_path / "corpus"))
    rank_pool.run(run_with_a_slow_rank, config, overrides, 1, world_size=2, timeout_seconds=90)
    # Metrics are those of rank 0, which waits for the other once it has computed its gradients, or where other work of
    # the machine holds it up, not that long.
    assert min(column(tmp_path / "run", "time_forward")) < 0.5 * SLEEP_SECONDS
    assert min(column(tmp_path / "run", "time_backward")) < 0.5 * SLEEP_SECONDS
    assert max(column(tmp_path / "run", "time_communication")[1:]) > 0.5 * SLEEP_SECONDS
    assert set(column(tmp_path / "run", "slowest_rank")[1:]) == {1}
    assert min(column(tmp_path / "run", "slowest_rank_seconds")) > SLEEP_SECONDS
    assert min(column(tmp_path / "run", "median_rank_seconds")) < SLEEP_SECONDS


def bench_numbers(config_path: str, overrides: list[str]) -> tuple[int, int, int]:
    result = bench(load(Path(config_path), *overrides), num_steps=2, warmup_steps=1)
    return result.measured.real_tokens, result.measured.predictions, len(result.measured.step_seconds)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_bench_counts_all_ranks(strategy: str, rank_pool: RankPool, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, tmp_path / "nowhere"))
    alone = bench_numbers(config, [])
    by_rank = rank_pool.run(bench_numbers, config, ["--train.strategy", strategy], world_size=2, timeout_seconds=90)
    assert by_rank == [alone, alone]
    assert not (tmp_path / "run").exists()
