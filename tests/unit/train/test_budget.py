"""The time of a run: what counts, what is agreed on, what a restart takes over."""

from __future__ import annotations

from pipeline.config.optimization import ScheduleConfig
from pipeline.config.run import RunConfig, TrainConfig
from pipeline.train.budget import TimeBudget
from pipeline.train.setup import Start


def test_time_runs_from_the_start_and_on_from_the_checkpoint() -> None:
    now = [1000.0]
    budget = TimeBudget(1.0, spent_seconds=600.0, now=lambda: now[0])
    now[0] += 50  # building the model: not training
    assert budget.elapsed_seconds() == 600
    budget.start()
    now[0] += 30.25
    assert budget.elapsed_seconds() == 630.25
    assert budget.elapsed_milliseconds() == 630_250


def test_only_what_is_agreed_counts() -> None:
    budget = TimeBudget(1.0, spent_seconds=0.0, now=lambda: 9e9)
    budget.start()
    budget.agree(900_000)
    assert budget.share == 0.25
    assert not budget.is_spent
    budget.agree(3_600_000)
    assert budget.is_spent


def test_without_a_budget_nothing_is_ever_spent() -> None:
    budget = TimeBudget(None, spent_seconds=1e9)
    assert (budget.share, budget.is_spent) == (0.0, False)


def test_a_start_after_the_last_step_ends_the_run() -> None:
    config = RunConfig(train=TrainConfig(steps=10), schedule=ScheduleConfig(budget_hours=1.0))
    assert not Start(step=9, training_seconds=3601.0).ends(config)  # stopped before the step of the final rate
    assert Start(step=9, training_seconds=3601.0, budget_spent=True).ends(config)
    assert Start(step=10, training_seconds=0.0).ends(config)
