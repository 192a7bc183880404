"""What else lies beside the checkpoints of a run: unfinished ones, damaged ones, the name of the latest."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from pipeline.base.files import fsync_directory

LATEST_NAME: Final = "latest"
"""A file with the name of the newest checkpoint, for people and scripts: a run looks for itself."""

_STEP_NAME = re.compile(r"step-(\d{8,})")


def list_directories(run_directory: Path) -> list[int]:
    """Steps of the checkpoints, ascending, with those that have lost their ``meta.json``."""
    matches = (_STEP_NAME.fullmatch(path.name) for path in (run_directory / "checkpoints").glob("step-*"))
    return sorted(int(match[1]) for match in matches if match)


def temporary_directory(path: Path, token: str) -> Path:
    """Where the checkpoint that becomes ``path`` is written.

    Args:
        token: of this start of the run: a process of the one before may still write on another node.
    """
    return path.with_name(f".{path.name}.{token}.tmp")


def delete_checkpoint(path: Path) -> None:
    """Renamed first: a deletion cut short never leaves something that looks like a checkpoint.

    Raises:
        OSError: it cannot be deleted.
    """
    doomed = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(run_directory: Path) -> None:
    """Delete what a kill in the middle of a save or a deletion has left; only while no checkpoint is being written."""
    for path in (run_directory / "checkpoints").glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(directory: Path) -> Path:
    """Rename a damaged checkpoint so that it is not found again and not in the way of a new one of its step.

    Returns:
        what it is called now.

    Raises:
        OSError: it cannot be renamed.
    """
    number, aside = 1, directory.with_name(f"{directory.name}.damaged")
    while aside.exists():
        number += 1
        aside = directory.with_name(f"{directory.name}.damaged-{number}")
    directory.rename(aside)
    fsync_directory(directory.parent)
    return aside
