"""Files that are whole or absent: temporary name in the same directory, fsync, rename, fsync of the directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError

_CHUNK_BYTES = 1 << 20


def temporary_name(path: Path) -> Path:
    """A hidden sibling of ``path``, unique to this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def fsync_directory(path: Path) -> None:
    """Make renames inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that a reader, or a crash at any moment, finds the old file or the new one, never a part.

    Raises:
        OSError: the disk is full or not writable; the old file is untouched and no temporary file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Indented JSON with a final newline, keys in the order given, NaN refused."""
    write_bytes_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file.

    Args:
        what: names the file in the error, e.g. ``"corpus manifest"``.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{what}: {path} does not exist.") from None
    return parse_json(content, str(path), what)


def parse_json(content: bytes, where: str, what: str) -> Any:
    """As :func:`read_json`, of bytes that came from ``where``."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: {where} is not valid JSON ({error}).") from None


@contextmanager
def directory_made_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling directory that becomes ``path`` when the block ends without an exception.

    Every file in it is fsynced before the rename. ``path`` must not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish_directory(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_directory(temporary: Path, path: Path) -> None:
    """Fsync all files under ``temporary`` and rename it to ``path`` (same filesystem, absent so far)."""
    for directory, _, names in os.walk(temporary):
        for name in names:
            descriptor = os.open(Path(directory, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(Path(directory))
    os.rename(temporary, path)
    fsync_directory(path.parent)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
