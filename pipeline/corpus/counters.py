"""How far a stage is: counters that workers write and the building process shows.

A counter is eight bytes of a mapped file, so workers need no queue, and a killed one leaves what it had counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


class TaskCounter:
    """The counter of one task, set to zero when the task starts."""

    def __init__(self, path: Path, rank: int) -> None:
        self._counters = np.memmap(path, np.int64, "r+")
        self._rank = rank
        self._done = 0
        self._counters[rank] = 0

    def set(self, amount: int) -> None:
        """``amount`` of the piece of work at hand is done."""
        self._counters[self._rank] = self._done + amount

    def finish(self, amount: int) -> None:
        """A piece of work of this size is finished."""
        self._done += amount
        self._counters[self._rank] = self._done


def make_counters(path: Path, num_tasks: int) -> None:
    """A file of zeros for ``num_tasks`` counters; one of the right size (an interrupted stage's) stays."""
    if not path.is_file() or path.stat().st_size != 8 * num_tasks:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(8 * num_tasks))


def total_of(path: Path) -> int:
    """Sum of all counters; 0 before the file exists."""
    return int(np.fromfile(path, np.int64).sum()) if path.is_file() else 0
