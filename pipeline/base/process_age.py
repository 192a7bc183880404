"""When this process was started, which is before its first line of Python could look at a clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

_START_TIME_FIELD = 22  # of /proc/PID/stat, counted from 1; the process's name is the second


def process_start(stat: Path = Path("/proc/self/stat")) -> float:
    """Seconds since 1970 at which this process was started; now, where the system does not say (no Linux)."""
    now = time.time()
    if not stat.exists():
        return now
    # pid (name) state parent ...; the name may hold spaces and parentheses.
    fields = stat.read_text().rpartition(")")[2].split()
    since_boot = int(fields[_START_TIME_FIELD - 3]) / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
