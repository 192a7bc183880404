"""Whether checkpoints are as they were written: sizes and checksums of all their files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.files import parse_json
from pipeline.checkpoints.directory import list_directories
from pipeline.checkpoints.meta import CHECKSUM_KEY, META_NAME, check_format, checkpoint_directory, checksum_of

_CHUNK_BYTES = 4 << 20
_MOST_THREADS = 8  # reading and hashing leave the interpreter alone


def damage_of(directory: Path) -> list[str]:
    """What is wrong with a checkpoint, a text for every bad file; none: it is intact. Reads every byte.

    Raises:
        UserError: it has another format, which is no damage.
    """
    try:
        description = parse_json((directory / META_NAME).read_bytes(), "it", "checkpoint")
    except FileNotFoundError:
        return [f"{META_NAME} is missing"]
    except (UserError, OSError) as error:
        return [f"{META_NAME}: {error}"]
    try:
        check_format(description, directory)
        if description[CHECKSUM_KEY] != checksum_of(description):
            return [f"{META_NAME}: it was changed after it was written"]
        files = dict(description["files"])
    except (KeyError, TypeError) as error:
        return [f"{META_NAME}: {error!r}"]
    with ThreadPoolExecutor(_MOST_THREADS) as threads:
        found = threads.map(lambda name: _damage_of_file(directory / name, files[name]), files)
    return [f"{name}: {text}" for name, text in zip(files, found, strict=True) if text is not None]


def _damage_of_file(path: Path, facts: Any) -> str | None:
    """Sizes first: most damage is found without reading anything."""
    import xxhash

    checksum = xxhash.xxh3_128()
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            return f"{size} bytes, written with {facts['bytes']}"
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                checksum.update(chunk)
        if checksum.hexdigest() != facts["xxh3_128"]:
            return f"checksum {checksum.hexdigest()}, written with {facts['xxh3_128']}"
    except OSError as error:
        return error.strerror or str(error)
    return None


def newest_intact(run_directory: Path) -> tuple[int | None, dict[int, list[str]]]:
    """The newest checkpoint that is intact, None if there is none; and the damage of those newer than it.

    Raises:
        UserError: one of them has another format.
    """
    damage: dict[int, list[str]] = {}
    for step in reversed(list_directories(run_directory)):
        problems = damage_of(checkpoint_directory(run_directory, step))
        if not problems:
            return step, damage
        damage[step] = problems
    return None, damage
