"""The run directory: made on the first start, entered again on every resume, never overwritten silently."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.directory_lock import DirectoryLock
from pipeline.base.errors import UserError
from pipeline.base.files import write_bytes_atomically
from pipeline.config.loading import to_yaml
from pipeline.config.run import RunConfig
from pipeline.monitor.events import append_event, read_events

CONFIG_NAME = "config.yaml"
_STATES = ("started", "resumed", "stopped", "finished")


def enter_run_directory(config: RunConfig, first_step: int) -> Path:
    """Make or enter the directory on rank 0 and write the resolved config.

    A config that has changed in keys that may change (see `identity.py`) is kept beside the new one as
    ``config.before-step-XXXXXXXX.yaml``.

    Raises:
        UserError: the path is a file, not writable, or a directory that is no run.
    """
    directory = Path(config.run_directory)
    check_run_directory(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / CONFIG_NAME
        text = to_yaml(config)
        if path.exists() and (before := path.read_text(encoding="utf-8")) != text:
            kept = _unused(directory / f"config.before-step-{first_step:08d}.yaml")
            write_bytes_atomically(kept, before.encode())
            append_event(directory, "config_changed", step=first_step, previous=kept.name)
        write_bytes_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"run_directory: {directory} cannot be written ({error.strerror or error}).") from None
    return directory


def sole_run(config: RunConfig) -> DirectoryLock:
    """What keeps other jobs out of the run directory, as a context; rank 0 only.

    Raises:
        UserError: another run is at work there, or it cannot be written; on entering.
    """
    return DirectoryLock(Path(config.run_directory), "run_directory", config.train.lock_timeout_seconds)


def note_finished(directory: Path, step: int) -> None:
    """Append the event ``finished``, unless it is the last news already; rank 0 only.

    A run that a signal stopped, and whose `train.steps` was then lowered to what is done, would else stay ``stopped``
    and be put back into SLURM's queue again and again.
    """
    names = [event.get("event") for event in read_events(directory)]
    if next((name for name in reversed(names) if name in _STATES), None) != "finished":
        append_event(directory, "finished", step=step)


def check_run_directory(directory: Path) -> None:
    """Refuse what is no run directory; reads only.

    Raises:
        UserError: the path is a file, or a non-empty directory without a run's config.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"run_directory: {directory} is a file; name a directory.")
    # Hidden files do not count: another rank may be looking while rank 0 writes the config under a temporary name. The
    # config is the first file of a run, so it is looked for after the others have been seen.
    holds_files = directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir())
    if holds_files and not (directory / CONFIG_NAME).exists():
        raise UserError(
            f"run_directory: {directory} is not empty and holds no run (no {CONFIG_NAME}); name a new directory."
        )


def _unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return candidate
