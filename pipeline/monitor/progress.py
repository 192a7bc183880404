"""``progress``: the last step done and when, in one file whose few bytes are written again at every step.

Metrics are logged only so often. After a kill this file says how many steps are lost, and while the run lives that it
does, for a few microseconds a step: the bytes go to the system's cache, which outlives the process (not the node).
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

PROGRESS_NAME = "progress"
_LINE = re.compile(rb"(\d{20}) (\d{17}\.\d{3})\n")


@dataclass(frozen=True)
class Progress:
    """``step`` steps were done at ``time`` (seconds since 1970)."""

    step: int
    time: float


class ProgressFile:
    """The writer; rank 0 only. The run directory must be there.

    Args:
        first_step: steps done before this start; what the start before wrote is replaced by it.

    Raises:
        OSError: the file cannot be written; from the constructor and from :meth:`write`.
    """

    def __init__(self, run_directory: Path, first_step: int) -> None:
        self._descriptor = os.open(run_directory / PROGRESS_NAME, os.O_WRONLY | os.O_CREAT, 0o644)
        self.write(first_step)

    def write(self, step: int) -> None:
        """``step`` steps are done."""
        os.pwrite(self._descriptor, b"%020d %021.3f\n" % (step, time.time()), 0)

    def close(self) -> None:
        os.close(self._descriptor)


def read_progress(run_directory: Path) -> Progress | None:
    """What was written last; None without a file, or with one that a crash of the node has left torn."""
    path = run_directory / PROGRESS_NAME
    found = _LINE.fullmatch(path.read_bytes()) if path.exists() else None
    return Progress(int(found[1]), float(found[2])) if found else None
