"""The clocks of a step: every moment is charged once, to the phase that ran."""

from __future__ import annotations

import pytest

from pipeline.monitor.step_clock import PHASES, StepClock, StreamClock


def test_every_moment_is_charged_to_the_phase_that_ran() -> None:
    now = [10.0]
    clock = StepClock(lambda: now[0])
    for phase, seconds in (("forward", 2.0), ("backward", 3.0), ("forward", 0.5)):
        clock.enter(phase)  # type: ignore[arg-type]  # a str
        now[0] += seconds
    with clock.during("logging"):
        now[0] += 1.0
        with clock.during("checkpoint"):
            now[0] += 7.0
        now[0] += 0.25
    assert clock.phase == "forward"
    now[0] += 4.0
    zero = dict.fromkeys(PHASES, 0.0)
    assert clock.read() == zero | {"forward": 6.5, "backward": 3.0, "logging": 1.25, "checkpoint": 7.0}
    now[0] += 1.0
    assert clock.read() == zero | {"forward": 1.0}, "reading starts anew and ends no phase"


def test_a_phase_that_fails_gives_the_time_back() -> None:
    clock = StepClock(lambda: 0.0)
    with pytest.raises(KeyError), clock.during("validation"):
        raise KeyError
    assert clock.phase == "other"


class FakeDevice:
    """A stream: every mark is reached some time after it was put there."""

    def __init__(self) -> None:
        self.host = 0.0
        self.behind = 0.0
        """What the device still had to do when the last mark was put, milliseconds."""
        self.made = 0
        self.waits = 0

    @property
    def reaches(self) -> float:
        return self.host + self.behind

    def work(self, launch: float, compute: float) -> None:
        """The host launches for ``launch`` milliseconds what takes the device ``compute``."""
        finished = max(self.reaches, self.host + launch) + compute
        self.host += launch
        self.behind = finished - self.host

    def idle(self, milliseconds: float) -> None:
        """The host waits for something that is not the device."""
        self.host += milliseconds
        self.behind = max(0.0, self.behind - milliseconds)

    def event(self) -> FakeEvent:
        self.made += 1
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.reached = 0.0

    def record(self) -> None:
        self.reached = self.device.reaches

    def query(self) -> bool:
        return self.reached <= self.device.host

    def synchronize(self) -> None:
        self.device.waits += 1
        self.device.idle(max(0.0, self.reached - self.device.host))

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.query(), "the time of an event that the device has not reached"
        return end.reached - self.reached


def test_a_stream_is_charged_for_what_it_waits_for() -> None:
    device = FakeDevice()
    clock = StreamClock(device.event)
    assert device.made == 0, "an event made now would belong to the device that happens to be current"
    clock.enter("forward")
    device.work(launch=1.0, compute=10.0)
    clock.enter("data_wait")
    device.idle(4.0)  # the device has work for longer than that
    clock.enter("backward")
    device.work(launch=1.0, compute=20.0)
    clock.enter("data_wait")
    device.idle(100.0)
    clock.enter("other")
    assert device.waits == 0
    milliseconds = {phase: round(1000 * seconds, 6) for phase, seconds in clock.read().items() if seconds}
    # The stream idles for the launch of its first work only; of the last wait all but the work still to do.
    assert milliseconds == {"forward": 11.0, "backward": 20.0, "data_wait": 75.0}
    assert sum(milliseconds.values()) == device.host == 106.0
    assert device.waits == 1


def test_marks_of_a_stream_are_folded_without_waiting() -> None:
    device = FakeDevice()
    clock = StreamClock(device.event)
    for _ in range(5000):
        clock.enter("forward")
        device.work(launch=0.001, compute=1.0)
        clock.enter("optimizer")
        device.idle(1.0)
    assert device.waits == 0
    assert device.made < 1500, "events are used again"
    read = clock.read()
    assert read["forward"] == pytest.approx(5.0, rel=0.01)
    assert sum(read.values()) * 1000 == pytest.approx(device.host)
