"""Bad steps in real runs: a poison on rank 1 is skipped by all ranks, and the run is that which was told to skip."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline.checkpoints.meta import checkpoint_directory, read_meta
from pipeline.monitor.events import read_events
from pipeline.train.module import PretrainModule
from pipeline.train.replay import replay_batch
from pipeline.train.run import RunOutcome
from tests.corpora import random_lengths, write_corpus
from tests.rankpool import RankPool
from tests.runs import column, load, run_rank, tiny_corpus, weights_of, write_config

BAD_STEP = 4
SHORT = [
    "--train.steps",
    "6",
    "--checkpoint.every_steps",
    "6",
    "--evaluation.every_steps",
    "0",
    "--evaluation.rows",
    "1",
]
TOLD = ["--train.skip_steps", f"[{BAD_STEP}]"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


def _poisoned(
    config_path: str, overrides: list[str], steps: Sequence[int], what: str, factor: float, stop_at: int = 0
) -> RunOutcome:
    """Train; on the last rank the ``what`` of the last micro-batch of ``steps`` is ``factor`` times itself.

    In step ``stop_at`` that rank gets SIGTERM, so the step after it is the last one.
    """
    clean = PretrainModule.loss_sums

    def loss_sums(self: PretrainModule, batch: Any) -> tuple[Tensor, ...]:
        (loss,) = clean(self, batch)
        if self.training and self.step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.training and self.finishes_step and self.step + 1 in steps:
            if what == "loss":
                return (loss * factor,)
            loss.register_hook(lambda gradient: gradient * factor)
        return (loss,)

    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        PretrainModule.loss_sums = loss_sums
    try:
        return run_rank(config_path, overrides)
    finally:
        PretrainModule.loss_sums = clean


def equal_weights(run: Path, other: Path, step: int) -> bool:
    weights, expected = weights_of(run, step), weights_of(other, step)
    assert weights.keys() == expected.keys()
    return all((weights[name] == expected[name]).all() for name in expected)


def skips(run_directory: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(run_directory) if event["event"] == "step_skipped"]


@pytest.fixture(scope="module")
def told_alone(rank_pool: RankPool, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that was told to skip the step: no gradient was there that could have been left over somewhere."""
    config = write_config(tmp_path_factory.mktemp("told"), corpus)
    rank_pool.run(run_rank, str(config), [*SHORT, *TOLD, "--model.hidden_dropout", "0"], world_size=1)
    return config.with_suffix("")


@pytest.mark.parametrize(
    ("strategy", "precision", "what", "factor"),
    [
        ("ddp", "fp32", "loss", math.nan),
        pytest.param("ddp", "bf16", "gradient", math.nan, marks=pytest.mark.proof),
        pytest.param("zero1", "fp32", "gradient", math.inf, marks=pytest.mark.proof),
        ("zero1", "bf16", "gradient", math.nan),
        pytest.param("zero1", "bf16", "loss", math.inf, marks=pytest.mark.proof),
        pytest.param("zero2", "fp32", "loss", math.inf, marks=pytest.mark.proof),
        pytest.param("zero2", "bf16", "gradient", math.inf, marks=pytest.mark.proof),
        pytest.param("zero3", "fp32", "loss", math.nan, marks=pytest.mark.proof),
        pytest.param("zero3", "fp32", "gradient", math.inf, marks=pytest.mark.proof),
        pytest.param("zero3", "bf16", "gradient", math.nan, marks=pytest.mark.proof),
    ],
)
def test_poison_on_one_rank(
    strategy: str,
    precision: str,
    what: str,
    factor: float,
    rank_pool: RankPool,
    corpus: Path,
    told_alone: Path,
    tmp_path: Path,
) -> None:
    """Two micro-batches a step, of which the second is poisoned."""
    overrides = [*SHORT, "--train.strategy", strategy, "--train.precision", precision, "--model.hidden_dropout", "0"]
    poisoned, told = (write_config(tmp_path, corpus, name) for name in ("poisoned", "told"))
    rank_pool.run(_poisoned, str(poisoned), overrides, [BAD_STEP], what, factor, world_size=2)
    rank_pool.run(run_rank, str(told), [*overrides, *TOLD], world_size=2)
    run, reference = poisoned.with_suffix(""), told.with_suffix("")
    assert equal_weights(run, reference, 6)
    if precision == "fp32":  # rounded to bf16, a gradient next to 0 changes its sign, and Adam's step with it
        for name, value in weights_of(told_alone, 6).items():
            assert weights_of(run, 6)[name] == pytest.approx(value, abs=2e-4), name
    (event,), (told_event,) = skips(run), skips(reference)
    expected = replay_batch(load(poisoned, *overrides), BAD_STEP).facts()
    assert event["step"] == told_event["step"] == BAD_STEP
    assert event["segments"] == told_event["segments"] == expected["segments"]
    assert event["batch_digest"] == column(run, "batch_digest")[BAD_STEP - 1]
    assert event["reason"] == f"{what}_not_finite"
    assert told_event["reason"] == "skip_steps"
    assert event["ranks_with_broken_loss"] == ([1] if what == "loss" else [])


@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(name, marks=pytest.mark.proof) for name in ("single", "zero1", "zero2", "zero3"))],
)
def test_a_rollback_gives_the_run_that_was_told_to_skip_the_window(
    strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    """Checkpoints 2, 4, ...; bad are 7 to 9; at least three steps back is checkpoint 2: steps 3 to 9 are given up."""
    world_size = 1 if strategy == "single" else 2
    overrides = [*SHORT, "--train.steps", "11", "--checkpoint.every_steps", "2", "--train.strategy", strategy]
    overrides += ["--train.bad_steps.rollback_after", "3", "--train.bad_steps.rollback_steps", "3"]
    rolling, told = (write_config(tmp_path, corpus, name) for name in ("rolling", "told"))
    rank_pool.run(_poisoned, str(rolling), overrides, [7, 8, 9], "loss", math.nan, world_size=world_size)
    window = "[" + ", ".join(map(str, range(3, 10))) + "]"
    rank_pool.run(run_rank, str(told), [*overrides, "--train.skip_steps", window], world_size=world_size)
    run, reference = rolling.with_suffix(""), told.with_suffix("")
    assert equal_weights(run, reference, 11)
    assert not equal_weights(run, reference, 6)
    assert column(run, "step") == list(range(1, 12))
    (event,) = (event for event in read_events(run) if event["event"] == "rolled_back")
    assert (event["step"], event["to_step"], event["skipped_steps"]) == (9, 2, [3, 9])
    assert column(run, "loss")[9:] == column(reference, "loss")[9:]
    assert read_meta(checkpoint_directory(run, 11)).bad_steps["skipped"] == [[3, 9]]


@pytest.mark.proof
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_resumed_run_decides_as_the_undisturbed_one(
    strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    """Gradient spikes in steps 12 to 15, of which the last makes the run go back; it is stopped after 14."""
    overrides = [*SHORT, "--train.steps", "17", "--checkpoint.every_steps", "3", "--checkpoint.keep_last", "3"]
    overrides += ["--train.bad_steps.spike_factor", "10", "--train.bad_steps.spike_window", "16"]
    overrides += ["--train.bad_steps.rollback_after", "4", "--train.bad_steps.rollback_steps", "4"]
    overrides += ["--train.strategy", strategy]
    poison = (range(12, 16), "gradient", 100.0)
    undisturbed, stopped = (write_config(tmp_path, corpus, name) for name in ("undisturbed", "stopped"))
    rank_pool.run(_poisoned, str(undisturbed), overrides, *poison, world_size=2)
    outcomes = rank_pool.run(_poisoned, str(stopped), overrides, *poison, 13, world_size=2)
    assert {outcome.step for outcome in outcomes} == {14}
    rank_pool.run(_poisoned, str(stopped), overrides, *poison, world_size=2)
    run, reference = stopped.with_suffix(""), undisturbed.with_suffix("")
    assert [(event["step"], event["reason"]) for event in skips(run)] == [
        (step, "gradient_spike") for step in poison[0]
    ]
    assert equal_weights(run, reference, 17)
    state, expected = (read_meta(checkpoint_directory(path, 17)).bad_steps for path in (run, reference))
    assert state == expected
    assert state["skipped"] == [[7, 15]]


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm(seed: int, rank_pool: RankPool, tmp_path: Path) -> None:
    """From the first step to the plateau, with a short warmup, small batches and a rate that is high for them."""
    corpus = write_corpus(tmp_path / "corpus", random_lengths(seed, 3, 300), vocab_size=60, seed=seed).directory
    config = write_config(tmp_path, corpus)
    overrides = [*SHORT, "--seed", str(seed), "--train.steps", "400", "--checkpoint.every_steps", "400"]
    overrides += ["--train.bad_steps.spike_factor", "10", "--monitor.log_every_steps", "50", "--model.num_layers", "1"]
    rank_pool.run(run_rank, str(config), overrides, world_size=1)
    run = config.with_suffix("")
    assert skips(run) == []
    state = read_meta(checkpoint_directory(run, 400)).bad_steps
    assert len(state["losses"]) == len(state["gradient_norms"]) == 128
    assert column(run, "loss")[-1] < column(run, "loss")[0] - 0.05
