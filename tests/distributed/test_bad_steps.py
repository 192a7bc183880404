"""Bad steps in real runs: a poison on rank 1 is skipped by all ranks, and the run is that which was told to skip."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from torch import Tensor

from pipeline.monitor.events import read_events
from pipeline.train.checkpoint import checkpoint_directory, read_meta
from pipeline.train.module import PretrainModule
from pipeline.train.replay import replay_batch
from tests.rankpool import RankPool
from tests.runs import column, load, run_rank, tiny_corpus, write_config

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


def _poisoned(config_path: str, overrides: list[str], steps: Sequence[int], what: str, factor: float) -> Any:
    """Train; on the last rank the ``what`` of the last micro-batch of ``steps`` is ``factor`` times itself."""
    clean = PretrainModule.loss_sum

    def loss_sum(self: PretrainModule, batch: Any) -> Tensor:
        loss = clean(self, batch)
        if self.training and self.finishes_step and self.step + 1 in steps:
            if what == "loss":
                return loss * factor
            loss.register_hook(lambda gradient: gradient * factor)
        return loss

    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        PretrainModule.loss_sum = loss_sum
    try:
        return run_rank(config_path, overrides)
    finally:
        PretrainModule.loss_sum = clean


def weights_of(run_directory: Path, step: int) -> dict[str, Any]:
    return load_file(checkpoint_directory(run_directory, step) / "model.safetensors")


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
    ("strategy", "what", "factor"),
    [
        ("ddp", "loss", math.nan),
        ("zero1", "gradient", math.inf),
        ("zero2", "loss", math.inf),
        ("zero3", "loss", math.nan),
    ],
)
def test_poison_on_one_rank(
    strategy: str, what: str, factor: float, rank_pool: RankPool, corpus: Path, told_alone: Path, tmp_path: Path
) -> None:
    """Two micro-batches a step, of which the second is poisoned."""
    overrides = [*SHORT, "--train.strategy", strategy, "--model.hidden_dropout", "0"]
    poisoned, told = (write_config(tmp_path, corpus, name) for name in ("poisoned", "told"))
    rank_pool.run(_poisoned, str(poisoned), overrides, [BAD_STEP], what, factor, world_size=2)
    rank_pool.run(run_rank, str(told), [*overrides, *TOLD], world_size=2)
    run, reference = poisoned.with_suffix(""), told.with_suffix("")
    assert equal_weights(run, reference, 6)
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


@pytest.mark.parametrize("strategy", ["single", "ddp", "zero2", "zero3"])
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
