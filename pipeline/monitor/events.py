"""``events.jsonl``: what happened to a run (starts, resumes, signals, skips, checkpoints, exports), with wall time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.monitor.json_lines import Record, encode_line, read_records, utc_now

EVENTS_NAME = "events.jsonl"

STARTING_EVENTS = ("started", "resumed")
"""Events that begin a stretch of work; wall time counts from each to the last sign of life before the next."""

OUTSIDE_EVENTS = ("exported", "config_changed", "change_accepted", "checkpoint_damaged")
"""Events that happen while nothing trains, perhaps days after the run: no sign of life."""


def append_event(run_directory: Path, event: str, step: int | None = None, **facts: Any) -> Record:
    """Append ``{"time": ..., "event": ..., "step": ..., **facts}`` and make it durable.

    One ``write`` to a file opened for appending, so lines of several processes do not mix. A line that a killed
    process left without its end is closed first: the new line is never glued to it.

    Returns:
        The record written.

    Raises:
        OSError: the run directory is not writable.
    """
    record: Record = {"time": utc_now(), "event": event, "step": step, **facts}
    path = run_directory / EVENTS_NAME
    run_directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + encode_line(record))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return record


def read_events(run_directory: Path) -> list[Record]:
    """All whole events of a run, oldest first; none if there is no file."""
    return read_records(run_directory / EVENTS_NAME)
