"""Where the time of a step goes: every moment belongs to exactly one phase, so the phases add up to the whole.

Two clocks of one interface. :class:`StepClock` reads the time of the host. :class:`StreamClock` puts a mark into the
stream of the CUDA device instead, which runs behind the host: a phase lasts from the moment at which the device comes
by its mark until it comes by the next one. What the host does while the device has work left then costs nothing, and
what the device waits for is charged to what it waits for. No mark waits; they are read at logged steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol

Phase = Literal[
    "data_wait",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "logging",
    "validation",
    "checkpoint",
    "other",
]

PHASES: Final[tuple[Phase, ...]] = (
    "data_wait",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "logging",
    "validation",
    "checkpoint",
    "other",
)
OUTSIDE_TRAINING: Final[tuple[Phase, ...]] = ("validation", "checkpoint")
"""Phases that rates leave out."""


class StepClock:
    """Seconds of this process by phase.

    Args:
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._phase: Phase = "other"
        self._since = now()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @property
    def phase(self) -> Phase:
        """The phase that runs."""
        return self._phase

    def enter(self, phase: Phase) -> None:
        """The phase that runs ends here and ``phase`` begins."""
        now = self._now()
        self._seconds[self._phase] += now - self._since
        self._since = now
        self._phase = phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """``phase`` inside, what ran before afterwards."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def read(self) -> dict[Phase, float]:
        """Seconds of every phase since the last call; their sum is the time that has passed."""
        self.enter(self._phase)
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


class Event(Protocol):
    """What is used of ``torch.cuda.Event``."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any, /) -> Any: ...


class StreamClock(StepClock):
    """Seconds of a CUDA stream by phase, from events. Time begins with the first call: only then the device is chosen.

    Args:
        make_event: makes an event that can be timed.
    """

    _MOST_PENDING: Final = 1024

    def __init__(self, make_event: Callable[[], Event]) -> None:
        super().__init__()
        self._make_event = make_event
        self._pending: deque[tuple[Phase, Event]] = deque()
        self._spare: list[Event] = []

    def enter(self, phase: Phase) -> None:
        self._phase = phase
        self._mark()
        if len(self._pending) % self._MOST_PENDING == 0:
            self._fold()

    def read(self) -> dict[Phase, float]:
        """As of the base class; waits for the device, so call it where that has been waited for."""
        self._mark()
        self._pending[-1][1].synchronize()
        self._fold()
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds

    def _mark(self) -> None:
        event = self._spare.pop() if self._spare else self._make_event()
        event.record()
        self._pending.append((self._phase, event))

    def _fold(self) -> None:
        """Add up what the device has come by; waits for nothing."""
        while len(self._pending) > 1 and self._pending[1][1].query():
            phase, begin = self._pending.popleft()
            self._seconds[phase] += begin.elapsed_time(self._pending[0][1]) / 1000
            self._spare.append(begin)
