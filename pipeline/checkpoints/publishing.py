"""From files in a temporary directory to a checkpoint: all of it or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.base.files import fsync_directory, write_bytes_atomically, write_json_atomically
from pipeline.checkpoints.directory import LATEST_NAME, remove_leftovers
from pipeline.checkpoints.meta import CHECKSUM_KEY, META_NAME, checkpoint_directory, checksum_of
from pipeline.checkpoints.retention import Retention, prune


def publish(temporary: Path, path: Path, description: dict[str, Any]) -> None:
    """Make a checkpoint of ``temporary``, whose files are on disk already.

    Args:
        description: for ``meta.json``; its ``files`` must be those that are there.

    Raises:
        OSError: the disk, or something of this name is there already.
        ValueError: a file is not there as its rank has written it.
    """
    for name, facts in description["files"].items():
        size = (temporary / name).stat().st_size if (temporary / name).exists() else None
        if size != facts["bytes"]:
            raise ValueError(
                f"{name} has {'not arrived' if size is None else f'{size} bytes'} where rank 0 looks, and was written "
                f"with {facts['bytes']}: run_directory must be one directory that all nodes share"
            )
    write_json_atomically(temporary / META_NAME, {**description, CHECKSUM_KEY: checksum_of(description)})
    fsync_directory(temporary)
    os.rename(temporary, path)
    fsync_directory(path.parent)


def tidy(run_directory: Path, step: int, retention: Retention) -> list[int]:
    """After the checkpoint of ``step`` was published: name it in ``latest``, delete old ones and leftovers.

    Returns:
        steps of the checkpoints deleted.

    Raises:
        OSError: the disk; nothing of this is needed to go on from a checkpoint.
    """
    path = checkpoint_directory(run_directory, step)
    write_bytes_atomically(path.parent / LATEST_NAME, f"{path.name}\n".encode())
    deleted = prune(run_directory, retention, intact_step=step)
    remove_leftovers(run_directory)
    return deleted
