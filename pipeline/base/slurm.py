"""What a SLURM job knows of itself, from the environment that SLURM and `slurm/train.sbatch` give it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipeline.base.errors import UserError


def own_job_id(environ: Mapping[str, str] | None = None) -> str | None:
    """Number of the SLURM job that this process is part of, ``ARRAY_TASK`` in a job array; None outside of SLURM.

    One task of an array has the number of the whole array in ``SLURM_JOB_ID``: with it alone, all would be meant.
    """
    env = os.environ if environ is None else environ
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID") or None


def own_job_restarts(environ: Mapping[str, str] | None = None) -> int | None:
    """How often SLURM has started this job again; None outside of SLURM."""
    env = os.environ if environ is None else environ
    return int(env.get("SLURM_RESTART_COUNT") or 0) if own_job_id(env) else None


def job_end_time(environ: Mapping[str, str] | None = None) -> float | None:
    """When the time limit ends this job, in seconds since 1970; None without a limit or outside of SLURM.

    Raises:
        UserError: ``SLURM_JOB_END_TIME`` holds no number.
    """
    text = (os.environ if environ is None else environ).get("SLURM_JOB_END_TIME")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"SLURM_JOB_END_TIME is {text!r}: seconds since 1970 are expected; unset it or set it right."
        ) from None
