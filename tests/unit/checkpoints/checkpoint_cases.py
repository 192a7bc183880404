"""Checkpoints without a run: published files of some bytes."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from pipeline.checkpoints.directory import temporary_directory
from pipeline.checkpoints.meta import CheckpointMeta, checkpoint_directory, describe
from pipeline.checkpoints.publishing import publish


def description_of(step: int, world_size: int = 2) -> dict:
    """What ``meta.json`` says of an empty run."""
    return describe(CheckpointMeta(step, 0, "zero1", "fp32", world_size, identity={}, facts={}))


def write_checkpoint(run_directory: Path, step: int, num_files: int = 2, num_bytes: int = 5_000_000) -> Path:
    """An intact one."""
    path = checkpoint_directory(run_directory, step)
    temporary = temporary_directory(path, "token")
    temporary.mkdir(parents=True)
    files = {}
    for rank in range(num_files):
        content = os.urandom(num_bytes)
        (temporary / f"rank-{rank:05d}.safetensors").write_bytes(content)
        checksum = xxhash.xxh3_128(content).hexdigest()
        files[f"rank-{rank:05d}.safetensors"] = {"bytes": num_bytes, "xxh3_128": checksum}
    publish(temporary, path, {**description_of(step, num_files), "files": files})
    return path


def flip_byte(path: Path, position: int) -> None:
    """One bit of it, the size stays."""
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))
