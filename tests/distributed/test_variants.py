"""The same runs by other means: precision, compilation, other families, corpora of another kind."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import pytest
import torch

from tests.rankpool import RankPool
from tests.runs import column, metrics_of, run_rank, tiny_corpus, write_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


def _run_compiled(config_path: str, overrides: list[str]) -> int:
    """Train with every graph traced and differentiated but not lowered to C++; returns the number of graphs."""
    from torch._dynamo.testing import CompileCounterWithBackend

    os.environ["CXX"] = "none"  # nothing is lowered to C++, so no compiler is needed; the pool restores the environment
    counter = CompileCounterWithBackend("aot_eager")
    torch.compile = functools.partial(torch.compile, backend=counter)
    try:
        run_rank(config_path, [*overrides, "--train.compile", "true"])
    finally:
        torch.compile = torch.compile.func
        torch._dynamo.reset()
    return counter.frame_count


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_compiled_run_is_the_same_and_compiles_once(
    strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    plain = write_config(tmp_path, corpus, "plain")
    compiled = write_config(tmp_path, corpus, "compiled")
    overrides = ["--train.strategy", strategy, "--train.steps", "8", "--model.hidden_dropout", "0"]
    overrides += ["--evaluation.rows", "1", "--evaluation.every_steps", "0"]
    rank_pool.run(run_rank, str(plain), overrides, world_size=2)
    graphs = rank_pool.run(_run_compiled, str(compiled), overrides, world_size=2)
    assert graphs == [2, 2], graphs  # training, and the one evaluation
    assert column(compiled.with_suffix(""), "loss") == pytest.approx(column(plain.with_suffix(""), "loss"), abs=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_bf16_follows_fp32(strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    exact = write_config(tmp_path, corpus, "fp32")
    half = write_config(tmp_path, corpus, "bf16")
    overrides = ["--train.strategy", strategy, "--train.steps", "10", "--model.hidden_dropout", "0"]
    rank_pool.run(run_rank, str(exact), overrides, world_size=2)
    rank_pool.run(run_rank, str(half), [*overrides, "--train.precision", "bf16"], world_size=2)
    losses, expected = column(half.with_suffix(""), "loss"), column(exact.with_suffix(""), "loss")
    assert losses == pytest.approx(expected, abs=0.05)
    assert losses != expected


@pytest.mark.parametrize(
    ("family", "objective", "packing"),
    [("roberta", "mlm", "concatenate"), ("gpt2", "clm", "concatenate"), ("gpt2", "clm", "best_fit")],
)
def test_other_families_train(
    family: str, objective: str, packing: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    overrides = ["--model.family", family, "--objective.name", objective, "--data.packing", packing]
    overrides += ["--model.hidden_dropout", "0"]
    alone = write_config(tmp_path, corpus, "alone")
    rank_pool.run(run_rank, str(alone), overrides, world_size=1)
    together = write_config(tmp_path, corpus, "together")
    rank_pool.run(run_rank, str(together), [*overrides, "--train.strategy", "zero2"], world_size=2)
    losses = column(alone.with_suffix(""), "loss")
    assert column(together.with_suffix(""), "loss") == pytest.approx(losses, abs=1e-5)
    assert losses[0] == pytest.approx(math.log(200), rel=0.1)
    assert metrics_of(alone.with_suffix(""))[-1]["validation_loss"] == pytest.approx(math.log(200), rel=0.1)


def test_every_world_size_and_worker_count_sees_the_same_batches(
    rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    digests = set()
    for world_size, workers in ((1, 0), (2, 1), (4, 2)):
        config = write_config(tmp_path, corpus, f"run-{world_size}")
        overrides = ["--train.strategy", "ddp", "--train.steps", "6", "--data.workers", str(workers)]
        rank_pool.run(run_rank, str(config), overrides, world_size=world_size)
        digests.add(tuple(column(config.with_suffix(""), "batch_digest")))
    assert len(digests) == 1
    assert len(set(digests.pop())) == 6
