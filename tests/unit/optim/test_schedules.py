"""Schedules against their closed forms at the edges and in between."""

from __future__ import annotations

import math

import pytest

from pipeline.config.optimization import OptimizerConfig, ScheduleConfig, ScheduleName
from pipeline.optim.schedules import learning_rate

PEAK = 3e-4
OPTIMIZER = OptimizerConfig(learning_rate=PEAK)
NAMES: tuple[ScheduleName, ...] = ("linear", "cosine", "wsd", "polynomial")


def rates(schedule: ScheduleConfig, total_steps: int) -> list[float]:
    return [learning_rate(step, schedule, OPTIMIZER, total_steps) for step in range(total_steps)]


def schedule_of(name: ScheduleName, warmup_steps: int, final_ratio: float = 0.1) -> ScheduleConfig:
    decay_steps = 30 if name == "wsd" else 0
    return ScheduleConfig(name, warmup_steps=warmup_steps, decay_steps=decay_steps, final_ratio=final_ratio)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup_steps", [0, 1, 20])
@pytest.mark.parametrize("final_ratio", [0.0, 0.1, 1.0])
def test_edges(name: ScheduleName, warmup_steps: int, final_ratio: float) -> None:
    line = rates(schedule_of(name, warmup_steps, final_ratio), 101)
    assert line[:warmup_steps] == [PEAK * step / warmup_steps for step in range(warmup_steps)]
    assert line[warmup_steps] == PEAK
    assert line[100] == pytest.approx(PEAK * final_ratio, abs=1e-18)
    assert all(later <= earlier for earlier, later in zip(line[warmup_steps:], line[warmup_steps + 1 :], strict=False))
    assert max(line) == PEAK


def test_linear_is_straight() -> None:
    line = rates(schedule_of("linear", 20), 101)
    for step in range(20, 101):
        assert line[step] == pytest.approx(PEAK * (1 - 0.9 * (step - 20) / 80))


def test_cosine_is_half_a_wave() -> None:
    line = rates(schedule_of("cosine", 20), 101)
    assert line[60] == pytest.approx(PEAK * (1 + 0.1) / 2)
    for step in range(20, 101):
        assert line[step] == pytest.approx(PEAK * (0.1 + 0.9 * math.cos(math.pi * (step - 20) / 160) ** 2))


def test_wsd_is_flat_until_its_last_steps() -> None:
    line = rates(schedule_of("wsd", 20), 101)
    assert line[20:71] == [PEAK] * 51
    for step in range(70, 101):
        assert line[step] == pytest.approx(PEAK * (1 - 0.9 * (step - 70) / 30))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_one_step_and_steps_after_the_end_have_a_rate(name: ScheduleName) -> None:
    assert learning_rate(0, ScheduleConfig(name), OPTIMIZER, 1) == PEAK
    assert learning_rate(500, schedule_of(name, 20), OPTIMIZER, 101) == pytest.approx(0.1 * PEAK)


def test_warmup_does_not_depend_on_the_length_of_the_run() -> None:
    schedule = schedule_of("linear", 20)
    assert rates(schedule, 101)[:21] == rates(schedule, 10_001)[:21]


def test_wsd_can_cool_down_as_one_minus_the_root() -> None:
    schedule = ScheduleConfig("wsd", warmup_steps=20, decay_steps=30, decay_shape="1-sqrt", final_ratio=0.1)
    line = rates(schedule, 101)
    assert line[20:71] == [PEAK] * 51
    for step in range(70, 101):
        assert line[step] == pytest.approx(PEAK * (0.1 + 0.9 * (1 - ((step - 70) / 30) ** 0.5)))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_is_a_power_of_what_is_left(power: float) -> None:
    schedule = ScheduleConfig("polynomial", warmup_steps=20, power=power, final_ratio=0.1)
    line = rates(schedule, 101)
    for step in range(20, 101):
        assert line[step] == pytest.approx(PEAK * (0.1 + 0.9 * ((100 - step) / 80) ** power))
    if power == 1:
        assert line == pytest.approx(rates(schedule_of("linear", 20), 101))


def test_inverse_sqrt_meets_its_warmup_and_does_not_end() -> None:
    schedule = ScheduleConfig("inverse_sqrt", warmup_steps=20)
    line = rates(schedule, 101)
    assert line[:21] == pytest.approx([PEAK * step / 20 for step in range(21)])
    assert line[80] == pytest.approx(PEAK / 2)
    assert line == rates(schedule, 10_001)[:101]


def test_constant_is_constant_after_its_warmup() -> None:
    line = rates(ScheduleConfig("constant", warmup_steps=20), 101)
    assert line[:20] == [PEAK * step / 20 for step in range(20)]
    assert line[20:] == [PEAK] * 81


@pytest.mark.parametrize("name", [*NAMES, "inverse_sqrt", "constant"])
@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_with_a_budget_the_share_of_it_takes_the_place_of_the_step(name: ScheduleName, shape: str) -> None:
    """A run of 101 steps of equal length has the same rates, whatever its steps are called."""
    steps = ScheduleConfig(
        name, warmup_steps=20, decay_steps=30 * (name == "wsd"), decay_shape=shape, power=2.0, final_ratio=0.1
    )
    hours = ScheduleConfig(
        name,
        warmup_share=0.2,
        decay_share=0.3 * (name == "wsd"),
        decay_shape=shape,
        power=2.0,
        final_ratio=0.1,
        budget_hours=24.0,
    )
    for step in range(120):
        share = step / 100
        by_time = learning_rate(7, hours, OPTIMIZER, total_steps=10**6, budget_share=share)
        by_step = learning_rate(min(step, 100), steps, OPTIMIZER, total_steps=101, budget_share=0.9)
        assert by_time == pytest.approx(by_step, rel=1e-9, abs=1e-15), step
