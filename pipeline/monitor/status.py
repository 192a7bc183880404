"""Whether a run goes on, and how far it is: from its files, its job's place in SLURM's queue, its process. No torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.monitor.events import EVENTS_NAME, read_events
from pipeline.monitor.json_lines import last_record
from pipeline.monitor.sinks import METRICS_NAME

_STARTS = ("started", "resumed")
_STATES = (*_STARTS, "stopped", "finished")


def run_status(run_directory: Path, job_state: Callable[[str], str]) -> dict[str, Any]:
    """What `pretrain status` shows, as JSON values; None for what is not known.

    ``state`` is one of

    - ``finished``: all steps are done;
    - ``stopped``: it saved and left before its end, and waits for its next start;
    - ``queued``: its SLURM job waits in the queue;
    - ``starting``: its job runs, and training has not begun again;
    - ``running``;
    - ``died``: it ended without a word, and neither job nor process is there;
    - ``unknown``: it is on another machine without SLURM.

    Args:
        job_state: SLURM's word for a job (``PENDING``, ``RUNNING``, ...); raises UserError if there is none to ask, or
            it does not know the job any more.

    Raises:
        UserError: no run was started here.
    """
    news = [event for event in read_events(run_directory) if event.get("event") in (*_STATES, "checkpoint")]
    starts = [event for event in news if event["event"] in _STARTS]
    if not starts:
        raise UserError(
            f"status: {run_directory} has no run (no start in {EVENTS_NAME}). Give the run_directory of a training run."
        )
    start = starts[-1]
    last = next(event for event in reversed(news) if event["event"] in _STATES)
    saved = next((event for event in reversed(news) if event["event"] == "checkpoint"), None)
    logged = last_record(run_directory / METRICS_NAME)
    queue = _asked(job_state, start.get("job"))
    return {
        "state": _state(last["event"], queue, _process_runs(start.get("host"), start.get("process"))),
        "step": max(start["step"], last["step"], logged["step"] if logged else 0),
        "total_steps": start.get("total_steps"),
        "saved_step": saved["step"] if saved else None,
        "restarts": len(starts) - 1,
        "job": start.get("job"),
        "job_state": queue,
        "host": start.get("host"),
        "process": start.get("process"),
        "ranks": start.get("world_size"),
        "started": start["time"],
        "last_news": max(news[-1]["time"], (logged or {}).get("time", "")),
    }


def _state(last_event: str, queue: str | None, process_runs: bool | None) -> str:
    """The state, from the last event that tells, SLURM's word for the job and whether the process is there."""
    if last_event == "finished":
        return "finished"
    if queue in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING"):
        return "queued"
    if last_event == "stopped":
        return "starting" if queue == "RUNNING" else "stopped"
    if queue is not None:
        return "running" if queue in ("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT") else "died"
    if process_runs is None:
        return "unknown"
    return "running" if process_runs else "died"


def _asked(job_state: Callable[[str], str], job: str | None) -> str | None:
    if job is None:
        return None
    try:
        return job_state(job) or None
    except UserError:
        return None


def _process_runs(host: str | None, process: int | None) -> bool | None:
    """None where it cannot be seen."""
    if host != platform.node() or process is None:
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
