"""`pretrain launch slurm`: write the sbatch script of a run, show it, submit it; once, or as a chain of jobs."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.files import write_bytes_atomically
from pipeline.config.derived import batch_plan
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.launch.sbatch import JobOptions, sbatch_script, time_limit_seconds
from pipeline.launch.slurm_commands import slurm_output


@dataclass(frozen=True)
class Job:
    """A script that can be submitted, and how often."""

    script: Path
    text: str
    chain: int = 1


def make_job(
    config_path: Path,
    overrides: Sequence[str],
    options: JobOptions,
    *,
    chain: int = 1,
    local_cache: str | None = None,
    script: Path | None = None,
) -> Job:
    """The job of a run in the present directory; nothing is written.

    Args:
        options: what the user asked for; log, directory and signal follow from the run, the name if it has none.
        chain: jobs that one after the other go on with the run.
        local_cache: directory of the node for the run's caches; its variables (``$TMPDIR``) are resolved there.
        script: default: beside the run directory.

    Raises:
        UserError: a problem of the config, or a job that could not start.
    """
    overrides = [*_cache_keys(local_cache), *overrides]
    config = load_run_config(config_path, overrides)
    _check_size(options, config, chain)
    run_directory = Path(config.run_directory)
    options = replace(
        options,
        name=options.name or run_directory.name,
        log=str(run_directory).replace("%", "%%") + "-%j.log",
        directory=str(Path.cwd()),
        signal_seconds=_signal_seconds(config, options.time),
        commands_directory=_commands_directory(),
        chained=chain > 1,
    )
    text = sbatch_script(options, str(config_path), overrides)
    return Job(script or run_directory.with_name(f"{run_directory.name}.sbatch"), text, chain)


def write_script(job: Job) -> None:
    """Write the script, and make its folder; one of the same name is replaced.

    Raises:
        UserError: the path is a directory.
    """
    if job.script.is_dir():
        raise UserError(f"--script is {job.script}, a directory; give the path of a file.")
    write_bytes_atomically(job.script, job.text.encode())


def submit(job: Job) -> list[int]:
    """Hand the script to sbatch, every job of a chain to begin when the one before it has ended in whatever way.

    Returns:
        The numbers of the jobs.

    Raises:
        UserError: sbatch refuses, or is not here; with the jobs that are in the queue already.
    """
    numbers: list[int] = []
    for _ in range(job.chain):
        after = [f"--dependency=afterany:{numbers[-1]}"] if numbers else []
        try:
            answer = slurm_output("sbatch", "--parsable", *after, str(job.script))
        except UserError as error:
            queued = f" In the queue already: {', '.join(map(str, numbers))}." if numbers else ""
            raise UserError(f"{error}{queued}") from None
        numbers.append(int(answer.split(";")[0]))  # NUMBER[;CLUSTER]
    return numbers


def _check_size(options: JobOptions, config: RunConfig, chain: int) -> None:
    counts = {
        "--nodes": (options.nodes, 1),
        "--gpus-per-node": (options.gpus_per_node, 0),
        "--tasks-per-node": (options.ranks_per_node, 1),
        "--cpus-per-task": (options.cpus_per_task, 1),
        "--max-restarts": (options.max_restarts, 0),
        "--chain": (chain, 1),
    }
    for name, (value, least) in counts.items():
        if value < least:
            raise UserError(f"{name} is {value}; give at least {least}.")
    batch_plan(config, options.nodes * options.ranks_per_node)  # here, not after hours in a queue


def _signal_seconds(config: RunConfig, time: str) -> int:
    """How long before the end of a job of length ``time`` SLURM signals: when the run itself would stop."""
    seconds = math.ceil(config.checkpoint.seconds_before_time_limit)
    if seconds >= time_limit_seconds(time):
        raise UserError(
            f"--time is {time}, but the run stops {seconds} s before its end (checkpoint.seconds_before_time_limit): "
            "no step would be done. Give it more time or lower that key."
        )
    return seconds


def _cache_keys(directory: str | None) -> list[str]:
    if directory is None:
        return []
    keys = {"data.cache.directory": "shards", "train.compile_cache": "compiled"}
    return [word for key, name in keys.items() for word in (f"--{key}", f"{directory.rstrip('/')}/{name}")]


def _commands_directory() -> str | None:
    """Where the `pretrain` that runs now is installed; the nodes share the file system."""
    found = shutil.which("pretrain", path=str(Path(sys.executable).parent)) or shutil.which("pretrain")
    return str(Path(found).parent.absolute()) if found else None
