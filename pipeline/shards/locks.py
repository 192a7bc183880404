"""Advisory locks on files (flock) that end with their holder, however it ends, and that no forked child keeps."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_guard: Final = threading.Lock()
"""Held while a lock's descriptor is opened or closed, and over a fork."""
_descriptors: Final[set[int]] = set()


def _close_in_child() -> None:
    # A flock belongs to the open file, which a fork shares: the lock would last until the child ends too.
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)


def try_lock(path: Path, *, create: bool) -> int | None:
    """Lock a file for this thread alone, without waiting.

    The file may have been renamed or deleted between opening and locking; :func:`is_at` tells.

    Args:
        create: make an empty file where there is none.

    Returns:
        its descriptor, for :func:`unlock`; None while another has it.

    Raises:
        OSError: it cannot be opened, or its file system has no locks.
    """
    descriptor = _opened(path, create)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        unlock(descriptor)
        return None
    except BaseException:
        unlock(descriptor)
        raise
    return descriptor


def unlock(descriptor: int) -> None:
    """Close the descriptor of a lock."""
    with _guard:
        _descriptors.discard(descriptor)
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a lock, waiting for it; yields the file's descriptor. The file is made where there is none.

    Raises:
        OSError: as :func:`try_lock`.
    """
    descriptor = _opened(path, create=True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        unlock(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _opened(path: Path, create: bool) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    with _guard:
        descriptor = os.open(path, flags, 0o666)
        _descriptors.add(descriptor)
    return descriptor
