"""Processes of this machine, named so that another machine's notes of them cannot be taken for ours."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

_START_TIME_FIELD = 22  # of /proc/PID/stat, counted from 1; the process's name is the second
_ENDED = ("Z", "X")  # states of a process that is not yet waited for


def process_start(stat: Path = Path("/proc/self/stat")) -> float:
    """Seconds since 1970 at which this process was started, before its first line of Python could look at a clock; now,
    where the system does not say (no Linux)."""
    now = time.time()
    if not stat.exists():
        return now
    since_boot = int(_stat_fields(stat)[_START_TIME_FIELD - 3]) / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


def start_ticks(process: int, process_directory: Path = Path("/proc")) -> int | None:
    """When a process was started, in the kernel's ticks since boot; None if it has ended.

    With its number it names the process for good: numbers come again. Without ``/proc`` (no Linux) 0 for every process.
    """
    if process_directory.exists():
        try:
            fields = _stat_fields(process_directory / str(process) / "stat")
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in _ENDED else int(fields[_START_TIME_FIELD - 3])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # somebody else's
        pass
    return 0


def process_space() -> str:
    """Names what a process's number is counted in: this machine since its last boot, or this container on it."""
    parts = [platform.node()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        if path.exists():
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return " ".join(parts)


def _stat_fields(stat: Path) -> list[str]:
    """What follows the name: state, parent, ..."""
    # pid (name) state parent ...; the name may hold spaces and parentheses.
    return stat.read_text().rpartition(")")[2].split()
