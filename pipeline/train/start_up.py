"""Where the time of a start goes, from the process's beginning to the first step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

StartUpPhase = Literal["import", "data", "lock", "load", "model", "monitor", "rendezvous", "strategy"]


class StartUpClock:
    """Seconds of a start by phase; every moment belongs to one, so they add up to the whole.

    Args:
        began: when the process was started, in seconds since 1970: the imports begin there.
        now: the clock of ``began``; replaced in tests.
    """

    def __init__(self, began: float, now: Callable[[], float] = time.time) -> None:
        self.began = began
        self._now = now
        self._phase: StartUpPhase = "import"
        self._since = began
        self._seconds: dict[StartUpPhase, float] = {}

    def enter(self, phase: StartUpPhase) -> None:
        """The phase that runs ends here and ``phase`` begins, or goes on."""
        now = self._now()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def read(self) -> dict[str, float]:
        """Seconds of every phase so far, in milliseconds' precision."""
        self.enter(self._phase)
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}
