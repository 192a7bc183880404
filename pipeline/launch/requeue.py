"""`pretrain launch requeue`: at the end of a SLURM job, back into the queue if its run can go on.

`slurm/train.sbatch` calls it. A run that was stopped before its end goes on in any case. One whose ranks have failed
does if it has begun in this job, and if it gets on: what fails again and again with nothing saved would fail for ever.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.slurm import own_job_id, own_job_restarts
from pipeline.config.loading import load_run_config
from pipeline.launch.slurm_commands import job_state, slurm_output

_STARTS = ("started", "resumed")
_ENDS = ("stopped", "finished")


def run_events(run_directory: Path) -> list[dict[str, Any]]:
    """What `events.jsonl` says of starts, ends and checkpoints, in order; nothing where no run was started."""
    path = run_directory / "events.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
            if event["event"] in (*_STARTS, *_ENDS, "checkpoint"):
                found.append(event)
        except (json.JSONDecodeError, KeyError):  # the end of a line that a killed process could not finish
            continue
    return found


def was_stopped(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last thing that happened to the run is that it was stopped before its end."""
    return [event["event"] for event in events if event["event"] != "checkpoint"][-1:] == ["stopped"]


def num_futile_starts(events: Sequence[Mapping[str, Any]], job: str, restarts: int | None) -> int | None:
    """How many starts in a row, up to the one that has just failed, have saved nothing new; also those of this job
    whose ranks failed before the run could note that it started, as on a node that is gone.

    None: the run has not begun in this job, or is at its end. What failed is then a mistake in the config, say.

    Args:
        restarts: how often SLURM has started the job again.
    """
    mine = [event for event in events if event["event"] in _STARTS and event.get("job") == job]
    if not mine or "finished" in [event["event"] for event in events[-1:]]:
        return None
    futile = itertools.takewhile(lambda event: event["event"] in _STARTS, reversed(events))
    return len(list(futile)) + (restarts or 0) - (mine[-1].get("job_restarts") or 0)


def requeue(
    config: Path | str,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    max_restarts: int | None = None,
) -> bool:
    """Requeue this SLURM job if the run of ``config`` can go on; whether it was requeued.

    A job that SLURM is ending already (`scancel`, preemption) is left to SLURM: requeueing a cancelled job would bring
    it back against its owner's will.

    Args:
        max_restarts: given where the ranks have failed: how many starts in a row may end so with nothing new saved.

    Raises:
        UserError: not inside a SLURM job; SLURM refuses; the run was never started.
    """
    job = own_job_id(environ)
    if job is None:
        raise UserError("SLURM_JOB_ID is not set: `pretrain launch requeue` works only inside a SLURM job.")
    run_directory = Path(load_run_config(config, overrides).run_directory)
    events = run_events(run_directory)
    if max_restarts is None:
        if not events:
            raise UserError(f"no run was started in {run_directory}, so none can be continued.")
        goes_on, why = was_stopped(events), "the run is at its end"
    else:
        goes_on, why = _can_start_again(num_futile_starts(events, job, own_job_restarts(environ)), max_restarts)
    if not goes_on:
        print(f"requeue: {why}; not requeued")
        return False
    state = job_state(job)
    if state != "RUNNING":
        print(f"requeue: SLURM is ending job {job} ({state or 'unknown'}); not requeued here")
        return False
    slurm_output("scontrol", "requeue", job)
    print(f"requeue: the run was broken off before its end; job {job} goes back into the queue")
    return True


def _can_start_again(num_futile: int | None, max_restarts: int) -> tuple[bool, str]:
    """Whether a run whose ranks have failed is tried again, and else why not."""
    if max_restarts == 0:
        return False, "the ranks have failed, and --max-restarts is 0"
    if num_futile is None:
        return False, "the ranks have failed before the run began in this job"
    why = f"the ranks have failed, {num_futile} times in a row with nothing new saved (--max-restarts {max_restarts})"
    return num_futile <= max_restarts, why
