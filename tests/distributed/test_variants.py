"""The same runs by other means: precision, compilation, other families, corpora of another kind."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.config.run import TrainConfig
from pipeline.train import setup
from pipeline.train.strategies import make_strategy
from tests.rankpool import RankPool
from tests.runs import column, metrics_of, run_rank, tiny_corpus, weights_of, write_config

SHARING = ("ddp", "zero1", "zero2", "zero3")
"""Strategies of more than one rank."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


def _run_compiled(config_path: str, overrides: list[str]) -> int:
    """Train with every graph traced and differentiated but not lowered to C++; returns the number of graphs.

    Under ``ddp`` torch cuts a graph where a bucket of gradients is full, to reduce it beside the backward pass: after
    1 MB, which no tiny model has, so here after the first parameter.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    os.environ["CXX"] = "none"  # nothing is lowered to C++, so no compiler is needed; the pool restores the environment
    counter = CompileCounterWithBackend("aot_eager")
    torch.compile = functools.partial(torch.compile, backend=counter)
    try:
        with mock.patch.object(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1):
            run_rank(config_path, [*overrides, "--train.compile", "true"])
    finally:
        torch.compile = torch.compile.func
        torch._dynamo.reset()
    return counter.frame_count


def _equal_compiled(pool: RankPool, corpus: Path, directory: Path, world_size: int, overrides: list[str]) -> list[int]:
    """Train plainly and compiled, compare, and return the number of graphs on each rank."""
    plain, compiled = (write_config(directory, corpus, name) for name in ("plain", "compiled"))
    overrides = [*overrides, "--model.hidden_dropout", "0", "--model.num_layers", "1", "--evaluation.rows", "1"]
    pool.run(run_rank, str(plain), overrides, world_size=world_size)
    graphs = pool.run(_run_compiled, str(compiled), overrides, world_size=world_size, timeout_seconds=300)
    for name in ("loss", "grad_norm"):
        assert column(compiled.with_suffix(""), name) == pytest.approx(column(plain.with_suffix(""), name), abs=1e-5)
    return graphs


@pytest.mark.parametrize(("strategy", "world_size"), [("single", 1), *((name, 2) for name in SHARING)])
def test_a_compiled_run_is_the_same_and_compiles_once(
    strategy: str, world_size: int, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    overrides = ["--train.strategy", strategy, "--train.steps", "5", "--evaluation.every_steps", "0"]
    graphs = _equal_compiled(rank_pool, corpus, tmp_path, world_size, overrides)
    # Training, which ddp cuts in two, and the one evaluation.
    assert graphs == [3 if strategy == "ddp" else 2] * world_size


def test_every_stage_is_compiled_once(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    """Two stages, evaluated twice in each: a graph a stage for training, and one for validation."""
    overrides = ["--train.strategy", "single", "--train.steps", "8", "--evaluation.every_steps", "2"]
    overrides += ["--train.stages", "[{steps: 4, sequence_length: 32}, {}]"]
    assert _equal_compiled(rank_pool, corpus, tmp_path, 1, overrides) == [4]


@pytest.mark.parametrize("strategy", SHARING)
def test_activation_checkpointing_changes_nothing(
    strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    """With dropout, to the bit."""
    overrides = ["--train.strategy", strategy, "--train.steps", "4", "--evaluation.rows", "1"]
    metrics = {}
    for kept in ("none", "full") if strategy == "zero3" else ("none", "full", "selective"):
        config = write_config(tmp_path, corpus, kept)
        options = [*overrides, "--train.activation_checkpointing", kept]
        rank_pool.run(run_rank, str(config), options, world_size=2)
        metrics[kept] = [column(config.with_suffix(""), name) for name in ("loss", "grad_norm")]
    assert all(values == metrics["none"] for values in metrics.values())


@pytest.mark.parametrize(("strategy", "kept"), [("ddp", "selective"), ("zero3", "full")])
def test_activation_checkpointing_in_a_compiled_run(
    strategy: str, kept: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    overrides = ["--train.strategy", strategy, "--train.steps", "4", "--evaluation.every_steps", "0"]
    overrides += ["--train.activation_checkpointing", kept]
    assert _equal_compiled(rank_pool, corpus, tmp_path, 2, overrides) == [3 if strategy == "ddp" else 2] * 2


def _run_offloaded(config_path: str, overrides: list[str]) -> set[str]:
    """Train with the optimizer offloaded, which a config refuses on a CPU; returns its class."""
    classes = set()

    def offloaded(train: TrainConfig, *arguments: Any) -> Any:
        strategy = make_strategy(replace(train, offload_optimizer=True), *arguments)
        setup_optimizers = strategy.setup

        def checked(trainer: Any) -> None:
            setup_optimizers(trainer)
            assert strategy.model.zero_cpu_offload()
            classes.add(type(strategy.model.optimizer.optimizer).__name__)

        strategy.setup = checked
        return strategy

    setup.make_strategy = offloaded
    try:
        run_rank(config_path, overrides)
    finally:
        setup.make_strategy = make_strategy
    return classes


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_an_offloaded_optimizer_is_the_same(strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    """DeepSpeed's offloading with torch's AdamW: no compiler, the same run."""
    overrides = ["--train.strategy", strategy, "--train.steps", "5", "--evaluation.rows", "1"]
    here, offloaded = (write_config(tmp_path, corpus, name) for name in ("here", "offloaded"))
    rank_pool.run(run_rank, str(here), overrides, world_size=2)
    assert rank_pool.run(_run_offloaded, str(offloaded), overrides, world_size=2) == [{"AdamW"}] * 2
    losses = [column(config.with_suffix(""), "loss") for config in (here, offloaded)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


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


# One step of AdamW without memory and with a large epsilon moves the weights along the gradient: g / (|g| + 1).
ALONG_THE_GRADIENT = ["--train.steps", "2", "--schedule.name", "constant", "--schedule.warmup_steps", "1"]
ALONG_THE_GRADIENT += ["--optimizer.betas", "[0, 0]", "--optimizer.epsilon", "1", "--optimizer.weight_decay", "0"]
ALONG_THE_GRADIENT += ["--optimizer.learning_rate", "1", "--train.gradient_clip_norm", "0"]
ALONG_THE_GRADIENT += ["--model.hidden_dropout", "0", "--train.global_batch_size", "128"]
ALONG_THE_GRADIENT += ["--checkpoint.every_steps", "1", "--evaluation.every_steps", "0"]


def second_update(run: Path) -> torch.Tensor:
    """What the second step adds to the weights, as one vector."""
    before, after = (weights_of(run, step) for step in (1, 2))
    return torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)])


@pytest.fixture(scope="module")
def exact_update(rank_pool: RankPool, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    config = write_config(tmp_path_factory.mktemp("exact"), corpus)
    rank_pool.run(run_rank, str(config), [*ALONG_THE_GRADIENT, "--train.micro_batch_size", "64"], world_size=1)
    return second_update(config.with_suffix(""))


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_many_micro_batches_of_bf16_are_summed_in_fp32(
    strategy: str, rank_pool: RankPool, corpus: Path, exact_update: torch.Tensor, tmp_path: Path
) -> None:
    """bf16 has 8 bits: in a sum of its own, the 128th micro-batch would be rounded to a few levels."""
    config = write_config(tmp_path, corpus)
    overrides = [*ALONG_THE_GRADIENT, "--train.strategy", strategy, "--train.precision", "bf16"]
    rank_pool.run(run_rank, str(config), [*overrides, "--train.micro_batch_size", "1"], world_size=1)
    error = (second_update(config.with_suffix("")) - exact_update).norm() / exact_update.norm()
    assert error < 0.015


@pytest.mark.parametrize(
    ("family", "objective", "packing"),
    [
        ("roberta", "mlm", "concatenate"),
        ("distilbert", "mlm", "best_fit"),
        ("albert", "mlm", "best_fit"),
        ("electra", "rtd", "concatenate"),
        ("modernbert", "mlm", "best_fit"),
        ("bart", "denoise", "best_fit"),
        ("gpt2", "clm", "concatenate"),
        ("gpt2", "clm", "best_fit"),
    ],
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
    # Of 200 tokens, and with `rtd` of two answers, which soon are known to be mostly the same.
    answers = 50 * math.log(2) if objective == "rtd" else 0
    assert losses[0] == pytest.approx(math.log(200) + answers, rel=0.1)
    of_tokens = metrics_of(alone.with_suffix(""))[-1][
        "validation_loss_mlm" if objective == "rtd" else "validation_loss"
    ]
    assert of_tokens == pytest.approx(math.log(200), rel=0.1)


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
