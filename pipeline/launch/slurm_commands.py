"""SLURM's own commands: what they print, and errors that a user understands."""

from __future__ import annotations

import subprocess

from pipeline.base.errors import UserError


def slurm_output(*command: str) -> str:
    """Output of a SLURM command, without blanks around it.

    Raises:
        UserError: it is not installed here, or SLURM refuses.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not on PATH: run this where SLURM's commands are, e.g. on a login node."
        ) from None
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def job_state(job: str) -> str:
    """``PENDING``, ``RUNNING``, ``COMPLETING``, ...

    Raises:
        UserError: as :func:`slurm_output`; SLURM also refuses when the job ended some minutes ago.
    """
    return slurm_output("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
