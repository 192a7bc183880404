"""Each contradiction of optimizer, schedule and muP has its message."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.checks import run_problems
from pipeline.config.optimization import (
    OPTIMIZERS,
    OptimizerConfig,
    ParameterGroupConfig,
    betas_of,
    epsilon_of,
    momentum_of,
)
from tests.unit.config.test_checks import GOOD, with_values

BUDGET = {"schedule__budget_hours": 24.0}
NARROW = {"model__mup_base_width": 256, "model__hidden_size": 1024, "model__num_heads": 16}
PROPORTIONED = {**NARROW, "model__intermediate_size": 4096}


def problem_of(values: dict[str, Any]) -> str:
    problems = run_problems(with_values(GOOD, **values))
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer__learning_rate": float("nan")}, "optimizer.learning_rate: nan must be a finite number above 0"),
        ({"optimizer__weight_decay": -0.1}, "optimizer.weight_decay: -0.1 must be a finite number, 0 or more"),
        ({"optimizer__betas": (0.9, 1.0)}, "optimizer.betas[1]: 1.0 is outside [0, 1)"),
        ({"optimizer__epsilon": 0.0}, "optimizer.epsilon: 0.0 must be a finite number above 0"),
        ({"optimizer__name": "lion", "optimizer__epsilon": 1e-8}, "`lion` divides by nothing and has none"),
        ({"optimizer__name": "muon", "optimizer__momentum": 1.0}, "optimizer.momentum: 1.0 is outside [0, 1)"),
        ({"optimizer__momentum": 0.9}, "optimizer.momentum: only `muon` reads it; `adamw` has `optimizer.betas`"),
        ({"optimizer__layer_lr_decay": 0.0}, "optimizer.layer_lr_decay: 0.0 is outside (0, 1]"),
        ({"optimizer__groups": [ParameterGroupConfig()]}, "optimizer.groups.0.match: required"),
        (
            {"optimizer__groups": [ParameterGroupConfig("*", learning_rate_scale=-1.0)]},
            "optimizer.groups.0.learning_rate_scale: -1.0 must be a finite number, 0 or more",
        ),
        (
            {"optimizer__groups": [ParameterGroupConfig("*", weight_decay=float("inf"))]},
            "optimizer.groups.0.weight_decay: inf must be a finite number, 0 or more",
        ),
        (
            {"optimizer__name": "muon", "optimizer__state_dtype": "bf16"},
            "torch's `muon` keeps its momentum in the weights' number format; use `fp32`",
        ),
        (
            {"optimizer__state_dtype": "bf16", "train__strategy": "zero1"},
            "optimizer.state_dtype: `bf16` does not run under `zero1`",
        ),
    ],
)
def test_optimizers(values: dict[str, Any], message: str) -> None:
    assert message in problem_of(values)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lamb", "computes the norm of every weight tensor and of its update"),
        ("muon", "computes an orthogonal matrix from every momentum matrix"),
        ("stable_adamw", "computes the root mean square of every tensor's update"),
    ],
)
def test_zero_refuses_what_needs_whole_tensors(name: str, strategy: str, reason: str) -> None:
    problem = problem_of({"optimizer__name": name, "train__strategy": strategy})
    assert reason in problem
    assert f"`{strategy}` gives it flat slices of many tensors; set train.strategy to `ddp`" in problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule__name": "wsd"}, "`wsd` needs the length of its final decay"),
        ({"schedule__decay_steps": 5}, "schedule.decay_steps: only `wsd` reads it; `linear` does not"),
        ({**BUDGET, "schedule__decay_share": 0.1}, "schedule.decay_share: only `wsd` reads it"),
        ({"schedule__decay_shape": "1-sqrt"}, "schedule.decay_shape: only `wsd` reads it, not `linear`"),
        ({"schedule__power": 2.0}, "schedule.power: only `polynomial` reads it, not `linear`"),
        (
            {"schedule__name": "polynomial", "schedule__power": 0.0},
            "schedule.power: 0.0 must be a finite",
        ),
        (
            {"schedule__name": "constant", "schedule__final_ratio": 0.1},
            "schedule.final_ratio: `constant` does not come to an end",
        ),
        ({"schedule__name": "inverse_sqrt"}, "`inverse_sqrt` is peak x sqrt(warmup / step), so it needs a warmup"),
        ({"schedule__final_ratio": 1.5}, "schedule.final_ratio: 1.5 is outside [0, 1]"),
        ({"schedule__warmup_steps": 50, "train__steps": 10}, "longer than the run (train.steps: 10)"),
        ({"schedule__warmup_share": 0.1}, "a share of `schedule.budget_hours`, which is not set; give `warmup_steps`"),
        (
            {"schedule__name": "wsd", "schedule__decay_steps": 5, "schedule__decay_share": 0.1},
            "a share of `schedule.budget_hours`, which is not set; give `decay_steps`",
        ),
    ],
)
def test_schedules_in_steps(values: dict[str, Any], message: str) -> None:
    assert message in problem_of(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule__budget_hours": -1.0}, "schedule.budget_hours: -1.0 must be a finite number above 0"),
        ({"schedule__budget_hours": 0.0}, "schedule.budget_hours: 0.0 must be a finite number above 0"),
        ({**BUDGET, "schedule__warmup_share": 1.0}, "schedule.warmup_share: 1.0 is outside [0, 1)"),
        (
            {**BUDGET, "schedule__warmup_steps": 5},
            "warmup_steps: this schedule follows `schedule.budget_hours`",
        ),
        ({**BUDGET, "schedule__warmup_tokens": 5.0}, "give `schedule.warmup_share` instead"),
        ({**BUDGET, "schedule__name": "wsd"}, "schedule.decay_share: `wsd` needs the length of its final decay"),
        (
            {**BUDGET, "schedule__name": "wsd", "schedule__decay_share": 0.8, "schedule__warmup_share": 0.3},
            "warmup_share (0.3) and decay_share (0.8) are together above 1",
        ),
    ],
)
def test_schedules_with_a_budget_of_time(values: dict[str, Any], message: str) -> None:
    assert message in problem_of(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**PROPORTIONED, "model__family": "albert"}, "model.mup_base_width: muP is not worked out for `albert`"),
        ({**PROPORTIONED, "model__family": "electra"}, "model.mup_base_width: muP is not worked out for `electra`"),
        ({**PROPORTIONED, "model__mup_base_width": 0}, "model.mup_base_width: 0 is below 1"),
        ({**PROPORTIONED, "model__mup_base_width": 96}, "96: no model of this width has heads of 64"),
        ({**NARROW, "model__intermediate_size": 4098}, "intermediate_size x 256 / 1024 whole"),
        (
            {**PROPORTIONED, "optimizer__name": "lamb"},
            "muP's learning rates are those of Adam-like steps",
        ),
        ({**PROPORTIONED, "optimizer__name": "muon"}, "use `adamw`, `stable_adamw` or `lion`"),
    ],
)
def test_mup(values: dict[str, Any], message: str) -> None:
    assert message in problem_of(values)


def test_what_is_allowed() -> None:
    assert run_problems(with_values(GOOD, **PROPORTIONED)) == []
    wsd = {"schedule__name": "wsd", "schedule__decay_share": 0.2, "schedule__decay_shape": "1-sqrt"}
    assert run_problems(with_values(GOOD, **BUDGET, **wsd, schedule__warmup_share=0.06)) == []
    assert run_problems(with_values(GOOD, optimizer__name="lion", train__strategy="zero2")) == []
    for name in OPTIMIZERS:
        assert run_problems(with_values(GOOD, optimizer__name=name)) == []


def test_settings_that_are_left_out_have_the_default_of_their_optimizer() -> None:
    assert betas_of(OptimizerConfig(name="lion")) == (0.9, 0.99)
    assert betas_of(OptimizerConfig(name="lion", betas=(0.5, 0.6))) == (0.5, 0.6)
    assert epsilon_of(OptimizerConfig(name="lamb")) == 1e-6
    assert epsilon_of(OptimizerConfig(name="lamb", epsilon=1e-9)) == 1e-9
    assert epsilon_of(OptimizerConfig(name="lion")) == 0
    assert momentum_of(OptimizerConfig(name="muon")) == 0.95
    assert momentum_of(OptimizerConfig(name="muon", momentum=0.0)) == 0
