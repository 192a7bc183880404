"""`pretrain launch requeue`: at the end of a SLURM job, back into the queue if the run was stopped before its end.

`slurm/train.sbatch` calls it when all ranks ended with status 0. A run that failed is not requeued: it would fail
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.slurm import own_job_id
from pipeline.config.loading import load_run_config
from pipeline.launch.slurm_commands import job_state, slurm_output


def run_was_stopped(run_directory: Path) -> bool:
    """Whether the last thing that happened to the run is that it was stopped before its end (event `stopped`).

    Raises:
        UserError: the run has no events: it was never started here.
    """
    path = run_directory / "events.jsonl"
    if not path.exists():
        raise UserError(f"{path} does not exist: no run was started in {run_directory}, so none can be continued.")
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            name = json.loads(line)["event"]
        except (json.JSONDecodeError, KeyError):  # the end of a line that a killed process could not finish
            continue
        if name in ("started", "resumed", "stopped", "finished"):
            last = name
    return last == "stopped"


def requeue(config: Path | str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> bool:
    """Requeue this SLURM job if the run of ``config`` was stopped; whether it was requeued.

    A job that SLURM is ending already (`scancel`, preemption) is left to SLURM: requeueing a cancelled job would bring
    it back against its owner's will.

    Raises:
        UserError: not inside a SLURM job; SLURM refuses; the run was never started.
    """
    job = own_job_id(environ)
    if job is None:
        raise UserError("SLURM_JOB_ID is not set: `pretrain launch requeue` works only inside a SLURM job.")
    if not run_was_stopped(Path(load_run_config(config, overrides).run_directory)):
        print("requeue: the run is at its end")
        return False
    state = job_state(job)
    if state != "RUNNING":
        print(f"requeue: SLURM is ending job {job} ({state or 'unknown'}); not requeued here")
        return False
    slurm_output("scontrol", "requeue", job)
    print(f"requeue: the run was stopped before its end; job {job} goes back into the queue")
    return True
