"""Time spent on a run, and the budget of it that its schedule may follow."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS_PER_HOUR = 3600.0


class TimeBudget:
    """Seconds of training on rank 0's clock, over all starts of the run.

    The clock runs from the first batch of a start to its last step, evaluations and checkpoints included: what the
    machines are occupied for. What a kill throws away does not count, since its steps are trained again.

    What ranks must know alike is :attr:`agreed_seconds`: rank 0's clock at the beginning of the step, which the step's
    reduction of integers carries to all.

    Args:
        hours: ``schedule.budget_hours``; None: only the time is kept.
        spent_seconds: of the starts before, from the checkpoint.
        now: seconds from any moment on; replaced in tests.
    """

    def __init__(
        self, hours: float | None, spent_seconds: float = 0.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = None if hours is None else hours * _SECONDS_PER_HOUR
        self.agreed_seconds = spent_seconds
        self.now = now
        self._spent_before = spent_seconds
        self._started: float | None = None

    def start(self) -> None:
        """The training loop begins."""
        self._started = self.now()

    def elapsed_seconds(self) -> float:
        """On this rank's clock."""
        return self._spent_before + (0.0 if self._started is None else self.now() - self._started)

    def elapsed_milliseconds(self) -> int:
        """As :meth:`elapsed_seconds`, for a sum of integers."""
        return round(1000 * self.elapsed_seconds())

    def agree(self, milliseconds: int) -> None:
        """A step begins at this time of rank 0's clock."""
        self.agreed_seconds = milliseconds / 1000

    @property
    def share(self) -> float:
        """Of the budget, spent before the step at hand; 0 without a budget."""
        return 0.0 if self.seconds is None else self.agreed_seconds / self.seconds

    @property
    def is_spent(self) -> bool:
        """The step at hand is the last one."""
        return self.seconds is not None and self.agreed_seconds >= self.seconds
