"""Whether a run goes on, and how far it is: from its files, its job's place in SLURM's queue, its process. No torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.monitor.events import EVENTS_NAME, STARTING_EVENTS, read_events
from pipeline.monitor.goodput import goodput_facts, goodput_of
from pipeline.monitor.json_lines import last_record, utc_time
from pipeline.monitor.progress import read_progress
from pipeline.monitor.sinks import METRICS_NAME

_GOODPUT = ("goodput", "wall_seconds", "lost_seconds", "redone_steps")
_STATES = (*STARTING_EVENTS, "stopped", "finished")


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

    ``goodput``, ``wall_seconds``, ``lost_seconds`` and ``redone_steps`` are those of
    :func:`pipeline.monitor.goodput.goodput`.

    Args:
        job_state: SLURM's word for a job (``PENDING``, ``RUNNING``, ...); raises UserError if there is none to ask, or
            it does not know the job any more.

    Raises:
        UserError: no run was started here.
    """
    news = [event for event in read_events(run_directory) if event.get("event") in (*_STATES, "checkpoint")]
    starts = [event for event in news if event["event"] in STARTING_EVENTS]
    if not starts:
        raise UserError(
            f"status: {run_directory} has no run (no start in {EVENTS_NAME}). Give the run_directory of a training run."
        )
    start = starts[-1]
    last = next(event for event in reversed(news) if event["event"] in _STATES)
    saved = next((event for event in reversed(news) if event["event"] == "checkpoint"), None)
    logged, progress = last_record(run_directory / METRICS_NAME), read_progress(run_directory)
    steps = (start["step"], last["step"], logged["step"] if logged else 0, progress.step if progress else 0)
    times = (news[-1]["time"], (logged or {}).get("time", ""), utc_time(progress.time) if progress else "")
    used = goodput_of(run_directory)
    queue = _asked(job_state, start.get("job"))
    return {
        "state": _state(last["event"], queue, _process_runs(start.get("host"), start.get("process"))),
        "step": max(steps),
        "total_steps": start.get("total_steps"),
        "saved_step": saved["step"] if saved else None,
        "restarts": len(starts) - 1,
        **{name: used[name] for name in _GOODPUT},
        "job": start.get("job"),
        "job_state": queue,
        "host": start.get("host"),
        "process": start.get("process"),
        "ranks": start.get("world_size"),
        "started": start["time"],
        "last_news": max(times),
    }


def shown_status(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of :func:`run_status` for people: what is known, goodput in words."""
    known = {name: value for name, value in facts.items() if value is not None and name not in _GOODPUT}
    told = goodput_facts(facts) if facts["goodput"] is not None else []
    return known | {label.lower(): text for label, text in told}


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
