"""The detector of bad steps: pure functions against slow ones, over sweeps."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest

from pipeline.config.bad_steps import BadStepsConfig
from pipeline.train.detector import LOSS_FLOOR, Detector, Window, spike_limit

SPIKES = BadStepsConfig(spike_factor=10.0, spike_window=32, rollback_after=3, rollback_steps=10)


@pytest.mark.parametrize("length", [1, 2, 7, 32, 101])
@pytest.mark.parametrize("floor", [0.0, 0.05, 1.0])
def test_the_limit_is_that_of_numpy(length: int, floor: float) -> None:
    for seed, factor in product(range(5), (1.0, 10.0)):
        values = np.random.default_rng(seed).lognormal(0.0, 0.5, length)
        center = np.median(values)
        deviation = np.median(np.abs(values - center))
        expected = center + max(factor * 1.4826 * deviation, floor * center)
        assert spike_limit(values.tolist(), factor, floor) == pytest.approx(expected, rel=1e-12)


def test_outliers_do_not_move_the_limit() -> None:
    """The limit stays within the range that the clean half alone allows."""
    clean = np.random.default_rng(0).normal(2.0, 0.1, 65).tolist()
    highest = max(spike_limit(clean, factor=20.0, floor=0.05), max(clean) + 20 * 1.4826 * (max(clean) - min(clean)))
    for outlier in (1e3, 1e30):
        assert spike_limit([*clean, *[outlier] * 64], factor=20.0, floor=0.05) <= highest


@pytest.mark.parametrize("length", [16, 33, 128])
def test_a_window_judges_as_the_slow_way(length: int) -> None:
    for seed in range(4):
        generator = np.random.default_rng(seed)
        window, past = Window(length, LOSS_FLOOR), []
        found = 0
        for _ in range(3 * length):
            value = float(generator.choice([1.0, 1.02, 1.5, generator.normal(1.0, 0.02)]))
            recent = past[-length:]
            expected = 2 * len(recent) >= length and value > spike_limit(recent, 6.0, LOSS_FLOOR)
            assert window.is_spike(value, 6.0) == expected
            found += expected
            if not expected:
                window.add(value)
                past.append(value)
        assert list(window.values) == past[-length:]
        assert found > 0


@pytest.mark.parametrize("deviation", [0.0, 0.01, 0.1])
def test_noise_is_no_spike_and_a_spike_is_one(deviation: float) -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        detector = Detector(SPIKES, ())
        for step in range(1, 400):
            level = 2.0 + 5.0 * math.exp(-step / 50)  # as losses fall
            noise = 1 + deviation * generator.standard_normal(2)
            loss, norm = level * abs(noise[0]), 0.5 * abs(noise[1])
            if step in (100, 300):
                assert detector.observe(step, 3 * level, norm) == "loss_spike"
            elif step in (200, 350):
                assert detector.observe(step, loss, 5.0) == "gradient_spike"
            else:
                assert detector.observe(step, loss, norm) is None
        assert detector.skipped == [(100, 100), (200, 200), (300, 300), (350, 350)]


def test_the_end_of_a_plateau_is_no_spike() -> None:
    """A gradient that grows by a hundredth a step, after a plateau without noise."""
    detector = Detector(SPIKES, ())
    for step in range(1, 300):
        assert detector.observe(step, 7.0, 0.3 * 1.01 ** max(step - 200, 0)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(value: float) -> None:
    usual, scaled, off = (
        Detector(BadStepsConfig(nonfinite=nonfinite), (), scaled=scaled)
        for nonfinite, scaled in ((True, False), (True, True), (False, False))
    )
    assert usual.observe(1, value, 1.0) == usual.observe(2, value, value) == "loss_not_finite"
    assert usual.observe(3, 1.0, value) == "gradient_not_finite"
    assert usual.in_a_row == 3
    assert scaled.observe(1, value, value) == "loss_not_finite"
    assert scaled.observe(2, 1.0, value) is None, "the loss scale's business"
    assert off.observe(1, value, value) is None
    assert off.skipped == []


def test_named_steps_are_skipped_and_say_nothing() -> None:
    detector = Detector(SPIKES, [2, 4])
    reasons = [
        detector.observe(step, loss, 1.0) for step, loss in enumerate((math.nan, 1.0, math.nan, math.nan, 1.0), 1)
    ]
    assert reasons == ["loss_not_finite", "skip_steps", "loss_not_finite", "skip_steps", None]
    assert detector.skipped == [(1, 4)]
    detector = Detector(SPIKES, [2])
    detector.observe(1, math.nan, 1.0)
    detector.observe(2, math.nan, 1.0)
    assert detector.in_a_row == 1


def test_a_stage_has_a_level_of_its_own() -> None:
    detector = Detector(SPIKES, (), stage_of=lambda step: step > 50)
    for step in range(1, 51):
        assert detector.observe(step, 2.0, 1.0) is None
    for step in range(51, 100):
        assert detector.observe(step, 4.0, 9.0) is None
    assert detector.observe(100, 8.0, 9.0) == "loss_spike"


def test_a_detector_goes_on_from_its_state() -> None:
    """Stopped after every step in turn; the state as JSON."""
    generator = np.random.default_rng(0)
    numbers = [(float(loss), float(norm)) for loss, norm in generator.lognormal(0.0, 0.3, (80, 2))]
    for step, value in ((20, math.nan), (41, 50.0), (42, 50.0), (60, math.inf)):
        numbers[step] = (value, 1.0)

    def decisions(detector: Detector, first: int) -> list[str | None]:
        return [detector.observe(step, *numbers[step]) for step in range(first, len(numbers))]

    undisturbed = Detector(SPIKES, [50])
    expected = decisions(undisturbed, 0)
    assert len({*expected}) >= 4
    for stop in range(len(numbers)):
        before, after = Detector(SPIKES, [50]), Detector(SPIKES, [50])
        for step in range(stop):
            before.observe(step, *numbers[step])
        after.restore(json.loads(json.dumps(before.state())))
        assert decisions(after, stop) == expected[stop:]
        assert after.state() == undisturbed.state()


def skipping(*stretches: tuple[int, int]) -> Detector:
    detector = Detector(SPIKES, ())
    detector.restore({"skipped": stretches})
    return detector


def test_steps_taken_are_counted() -> None:
    detector = skipping((3, 5), (9, 9), (12, 20))
    skipped = {3, 4, 5, 9, *range(12, 21)}
    for after in range(25):
        for until in range(after, 25):
            assert detector.num_taken(after, until) == len({*range(after + 1, until + 1)} - skipped)


@pytest.mark.parametrize(
    ("saved", "skipped", "rollbacks", "target"),
    [
        ([5, 10, 15, 20, 25, 30], [], [], 20),  # ten steps taken since
        ([5, 10, 15, 20, 25, 30], [(29, 31)], [], 15),  # 16 to 28
        ([25], [], [], 25),  # nearer than asked, yet something
        ([25, 27], [], [], 25),  # the oldest
        ([29, 30], [(29, 31)], [], None),  # the weights of now
        ([], [], [], None),
        ([10, 15, 20], [(11, 20)], [(10, 20)], 20),  # 21 to 31; 15 was given up
        ([10, 15, 20], [(11, 31)], [(10, 20), (20, 28)], None),  # nothing taken since 10
        ([5, 10, 15], [(11, 31)], [(10, 28)], 5),  # further back than the last time
        ([31, 40], [], [], None),  # not of the past
    ],
)
def test_where_a_rollback_goes(
    saved: list[int], skipped: list[tuple[int, int]], rollbacks: list[tuple[int, int]], target: int | None
) -> None:
    detector = skipping(*skipped)
    detector.rollbacks = rollbacks
    assert detector.rollback_target(saved, now=31) == target


def test_after_a_rollback_all_is_as_if_the_steps_had_been_named() -> None:
    generator = np.random.default_rng(1)
    numbers = generator.lognormal(0.0, 0.05, (61, 2)).tolist()
    numbers[20] = [math.nan, 1.0]
    detector, told = Detector(SPIKES, ()), Detector(SPIKES, range(31, 46))
    for step in range(1, 46):
        detector.observe(step, *(numbers[step] if step < 43 else (99.0, 1.0)))
        told.observe(step, *numbers[step])
        if step == 30:
            saved = detector.state()
    assert detector.wants_rollback
    detector.roll_back(30, 45, saved)
    assert not detector.wants_rollback
    assert detector.state() == told.state() | {"rollbacks": [[30, 45]]}
    assert detector.skipped == [(20, 20), (31, 45)]
    for step in range(46, 61):
        assert detector.observe(step, *numbers[step]) == told.observe(step, *numbers[step])


def test_never_back() -> None:
    detector = Detector(BadStepsConfig(rollback_after=0), ())
    for step in range(1, 50):
        detector.observe(step, math.nan, math.nan)
        assert not detector.wants_rollback
