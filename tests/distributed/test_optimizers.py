"""Optimizers in real runs: many ranks train as one process, a resumed run goes on bit by bit, budgets of time end."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.train.module
from pipeline.monitor.events import read_events
from pipeline.train.budget import TimeBudget
from pipeline.train.run import RunOutcome
from tests.rankpool import RankPool
from tests.runs import column, load, metrics_of, run_rank, tiny_corpus, weights_of, write_config

VARIANTS: dict[str, list[str]] = {
    "adamw_bf16": ["--optimizer.state_dtype", "bf16"],
    "adamw_groups": [
        *["--optimizer.layer_lr_decay", "0.7", "--model.mup_base_width", "16"],
        *["--optimizer.groups", "[{match: '*.bias', learning_rate_scale: 0.3, weight_decay: 0.5}]"],
    ],
    "lamb": ["--optimizer.name", "lamb"],
    "lion": ["--optimizer.name", "lion", "--optimizer.learning_rate", "1e-3"],
    "muon": ["--optimizer.name", "muon"],
    "stable_adamw_bf16": ["--optimizer.name", "stable_adamw", "--optimizer.state_dtype", "bf16"],
}
SETTINGS = ["--train.steps", "8", "--checkpoint.every_steps", "4", "--model.hidden_dropout", "0"]
SETTINGS += ["--schedule.name", "constant", "--evaluation.every_steps", "0", "--optimizer.weight_decay", "0.1"]
LAST = "checkpoints/step-00000008"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


@pytest.fixture(scope="module")
def alone(rank_pool: RankPool, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of one process of a variant."""

    @functools.cache
    def run(variant: str) -> Path:
        config = write_config(tmp_path_factory.mktemp(variant), corpus)
        rank_pool.run(run_rank, str(config), SETTINGS + VARIANTS[variant], world_size=1)
        return config.with_suffix("")

    return run


@pytest.mark.parametrize(
    ("variant", "strategy"),
    [
        *((variant, "ddp") for variant in VARIANTS),
        *(("adamw_groups", strategy) for strategy in ("zero1", "zero2", "zero3")),
        *(("lion", strategy) for strategy in ("zero1", "zero2", "zero3")),
    ],
)
def test_two_ranks_train_as_one_process(
    variant: str, strategy: str, rank_pool: RankPool, corpus: Path, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    overrides = [*SETTINGS, *VARIANTS[variant], "--train.strategy", strategy]
    rank_pool.run(run_rank, str(config), overrides, world_size=2)
    run, expected = config.with_suffix(""), alone(variant)
    assert column(run, "lr") == column(expected, "lr")
    # A sum in another order turns signs (lion), digits of bf16 (muon) and rounded moments; never more than a few.
    tolerance = {"lamb": 1e-5, "adamw_groups": 1e-5}.get(variant, 2e-3)
    assert column(run, "loss") == pytest.approx(column(expected, "loss"), abs=tolerance)
    weights, reference = (weights_of(path, 8) for path in (run, expected))
    start = weights_of(expected, 4)
    for name, value in weights.items():
        if name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding alone
            continue
        moved = abs(reference[name] - start[name]).mean()
        # Muon raises a gradient's small singular values to 1, in bf16: what is rounding in them does not stay small.
        share = 0.2 if variant == "muon" else 0.05
        assert abs(value - reference[name]).mean() <= share * moved + 1e-9, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_bitwise_the_same(
    variant: str, rank_pool: RankPool, alone: Callable[[str], Path], corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    run = config.with_suffix("")
    shutil.copytree(alone(variant), run)
    shutil.rmtree(run / LAST)
    rank_pool.run(run_rank, str(config), SETTINGS + VARIANTS[variant], world_size=1)
    assert [event["event"] for event in read_events(run)].count("resumed") == 1
    weights, reference = (weights_of(path, 8) for path in (run, alone(variant)))
    for name, value in reference.items():
        assert (weights[name] == value).all(), name


@pytest.mark.parametrize(
    ("variant", "strategy", "precision"),
    [
        ("stable_adamw_bf16", "ddp", "fp32"),
        ("adamw_groups", "zero1", "bf16"),
        ("adamw_groups", "zero2", "bf16"),
        ("lion", "zero3", "fp32"),
    ],
)
def test_a_run_of_two_ranks_is_resumed_bitwise(
    variant: str, strategy: str, precision: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    overrides = [*SETTINGS, *VARIANTS[variant], "--train.strategy", strategy, "--train.precision", precision]
    run = config.with_suffix("")
    rank_pool.run(run_rank, str(config), overrides, world_size=2)
    reference = weights_of(run, 8)
    shutil.rmtree(run / LAST)
    rank_pool.run(run_rank, str(config), overrides, world_size=2)
    weights = weights_of(run, 8)
    for name, value in reference.items():
        assert (weights[name] == value).all(), name


class TickingClock:
    """Moves on by so many seconds at each look."""

    def __init__(self, tick_seconds: float) -> None:
        self.tick_seconds = tick_seconds
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * self.tick_seconds


def _run_by_the_clock(config_path: str, overrides: list[str]) -> RunOutcome:
    """Rank 0's clock moves by 100 seconds a look, the others' hardly."""
    clock = TickingClock(100.0 if os.environ["RANK"] == "0" else 0.001)
    pipeline.train.module.TimeBudget = functools.partial(TimeBudget, now=clock)  # type: ignore[misc]  # a stand-in
    try:
        return run_rank(config_path, overrides)
    finally:
        pipeline.train.module.TimeBudget = TimeBudget  # type: ignore[misc]


BUDGET = ["--schedule.warmup_steps", "0", "--schedule.budget_hours", "0.25", "--schedule.warmup_share", "0.2"]
BUDGET += ["--optimizer.learning_rate", "1e-2", "--evaluation.every_steps", "0"]


def expected_rate(seconds: float) -> float:
    """Linear over 900 seconds, the first 180 of them warmup."""
    share = min(seconds / 900, 1.0)
    return 1e-2 * (share / 0.2 if share < 0.2 else (1 - share) / 0.8)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_run_follows_its_budget_of_time(strategy: str, rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    overrides = [*BUDGET, "--train.strategy", strategy, "--monitor.log_every_steps", "3"]
    outcomes = rank_pool.run(_run_by_the_clock, str(config), overrides, world_size=2)
    run = config.with_suffix("")
    # A look at the start, one in each step, one at the checkpoint of step 5: step 8 is the first to begin at 900 s.
    assert [(outcome.step, outcome.finished) for outcome in outcomes] == [(8, True)] * 2
    assert column(run, "step") == [1, 3, 6, 8]
    assert column(run, "lr") == pytest.approx([expected_rate(seconds) for seconds in (100, 300, 700, 900)])
    assert metrics_of(run)[-1]["validation_loss"] > 0
    assert column(run, "budget_share") == pytest.approx([seconds / 900 for seconds in (100, 300, 700, 900)])
    assert [event["event"] for event in read_events(run)][-2:] == ["budget_spent", "finished"]
    again = rank_pool.run(_run_by_the_clock, str(config), overrides, world_size=2)
    assert [(outcome.step, outcome.finished) for outcome in again] == [(8, True)] * 2


def test_the_time_spent_survives_a_restart_with_more_ranks(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    rank_pool.run(_run_by_the_clock, str(config), [*BUDGET, "--train.steps", "3"], world_size=1)
    run = config.with_suffix("")
    meta = json.loads((run / "checkpoints/step-00000003/meta.json").read_text())
    assert meta["training_seconds"] == 400
    overrides = [*BUDGET, "--train.strategy", "ddp"]
    outcomes = rank_pool.run(_run_by_the_clock, str(config), overrides, world_size=2)
    assert [(outcome.step, outcome.finished) for outcome in outcomes] == [(7, True)] * 2
    seconds = [100, 200, 300, 500, 600, 800, 900]
    assert column(run, "lr") == pytest.approx([expected_rate(second) for second in seconds])


def test_a_run_that_was_stopped_after_its_time_does_its_last_step(
    rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    """The budget ran out while step 7 was computed and saved: the step with the final rate is still to come."""
    config = write_config(tmp_path, corpus)
    run = config.with_suffix("")
    rank_pool.run(_run_by_the_clock, str(config), [*BUDGET, "--train.steps", "7"], world_size=1)
    assert json.loads((run / "checkpoints/step-00000007/meta.json").read_text())["training_seconds"] == 900
    for _ in range(2):
        (outcome,) = rank_pool.run(_run_by_the_clock, str(config), BUDGET, world_size=1)
        assert (outcome.step, outcome.finished) == (8, True)
    assert column(run, "lr")[-2:] == [pytest.approx(expected_rate(800)), 0.0]
    assert metrics_of(run)[-1]["validation_loss"] > 0
    assert [event["event"] for event in read_events(run)][-2:] == ["budget_spent", "finished"]


def test_a_run_that_has_its_steps_ends_before_its_budget(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    outcome = run_rank(str(config), [*BUDGET, "--train.steps", "2", "--schedule.budget_hours", "24"])
    assert (outcome.step, outcome.finished) == (2, True)
    assert "budget_spent" not in [event["event"] for event in read_events(config.with_suffix(""))]
    assert load(config).schedule.budget_hours is None


def test_a_group_that_does_not_learn_stays_as_it_is(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    groups = "[{match: '*.layer.0.*', learning_rate_scale: 0}]"
    overrides = [*SETTINGS, "--optimizer.groups", groups, "--train.steps", "4", "--checkpoint.every_steps", "2"]
    run_rank(str(config), [*overrides, "--schedule.warmup_steps", "0"])
    early, late = (weights_of(config.with_suffix(""), step) for step in (2, 4))
    for name, value in early.items():
        assert (late[name] == value).all() == (".layer.0." in name), name
