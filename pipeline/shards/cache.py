"""A bounded directory of fetched files, shared by the processes of a node through the file system alone.

    DIRECTORY/.lock                                         bytes in all, and the lock under which they change
    DIRECTORY/<digest of the URL>/train/00007.tar.<digest>  a whole file; its last use is its modification time
    DIRECTORY/<digest of the URL>/....partial               a file being fetched, or left by a process that died

The digest in a file's name is that of its content: a corpus that was built again never meets its old files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from pipeline.base.errors import UserError
from pipeline.shards.locks import locked, try_lock, unlock
from pipeline.shards.partial import SUFFIX, Partial

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_SHA256: Final = re.compile("[0-9a-f]{64}")
_EVICTABLE: Final = re.compile(r".+\.[0-9a-f]{16}(" + re.escape(SUFFIX) + ")?")
_COUNT_DIGITS: Final = 20
_KEPT_FREE_SHARE: Final = 1 / 20
"""Part of a large cache that an eviction leaves free, so that not every download has to look through it."""


@dataclass(frozen=True)
class CacheSettings:
    """Where remote files are kept on this machine, and how patiently they are fetched."""

    directory: Path = Path("~/.cache/pretrain")
    """A directory that this user can write, on a disk of this machine."""

    max_bytes: int = 100 * 10**9
    """Size that it is kept below."""

    download_threads: int = 4
    """Files fetched at the same time in the background, a process."""

    stall_seconds: float = 30.0
    """A connection without a byte for so long is given up and opened again."""

    retry_seconds: float = 300.0
    """A download without progress for so long is an error."""

    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """For fsspec's file system class, e.g. ``{"endpoint_url": ...}``."""


@dataclass(frozen=True)
class _Entry:
    path: Path
    num_bytes: int
    last_use: int
    evictable: bool


class Cache:
    """The directory of one URL inside the shared one. Holds no state: safe in several threads, to fork and to pickle.

    Args:
        url: what is mirrored.

    Raises:
        UserError: the directory cannot be made or written.
    """

    def __init__(self, settings: CacheSettings, url: str) -> None:
        self.root = settings.directory.expanduser().absolute()
        self.max_bytes = settings.max_bytes
        self.folder = self.root / hashlib.sha256(url.encode()).hexdigest()[:16]
        with self.disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self._lock_file):
                pass

    @property
    def _lock_file(self) -> Path:
        return self.root / ".lock"

    def path(self, name: str, sha256: str) -> Path:
        """Where a whole file is, once it is.

        Raises:
            UserError: the name or the digest could lead elsewhere.
        """
        if not _SHA256.fullmatch(sha256):
            raise UserError(
                f"{sha256!r} is not a sha256 (64 hex digits), which the manifest gives for {name}. The manifest is "
                "damaged or not to be trusted: upload the corpus again."
            )
        return self.folder / f"{checked_name(name)}.{sha256[:16]}"

    def open(self, path: Path, num_bytes: int | None) -> BinaryIO | None:
        """Open a whole file and note its use; None if it is not there or, having another size, was damaged.

        As long as it (or a map of it) is open, other files are evicted before it. If it is, it stays readable.
        """
        try:
            # Without waiting: a pipe would wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or num_bytes not in (None, found.st_size):
                self.drop(path)
                os.close(descriptor)
                return None
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(descriptor)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def drop(self, path: Path) -> None:
        """Delete a file that is not to be trusted; whoever has it open goes on reading it."""
        path.unlink(missing_ok=True)

    def claim(self, path: Path) -> Partial | None:
        """The partial file of a whole one, locked; None while another process or thread is fetching it."""
        return Partial.claim(path.with_name(path.name + SUFFIX))

    def reserve(self, partial: Partial, num_bytes: int) -> bool:
        """Give a claimed partial file its size, evicting others for it; False: wait until other downloads are done.

        Raises:
            UserError: the file is larger than the cache may be.
        """
        wanted = Partial.size_for(num_bytes)
        if wanted > self.max_bytes:
            raise UserError(
                f"{partial.path.name.removesuffix(SUFFIX)} has {num_bytes} bytes; the cache {self.root} may hold "
                f"{self.max_bytes}. Raise data.cache.gigabytes."
            )
        with locked(self._lock_file) as counter:
            if partial.size_on_disk == wanted:  # resumed, and counted when it was begun
                return True
            partial.empty()  # Whoever waits takes no room.
            used = _read_count(counter)
            if used is None or used + wanted > self.max_bytes:
                used = self._evict(self.max_bytes - wanted, also_open=True)
            fits = used + wanted <= self.max_bytes
            # Counted before it is taken: a process killed in between leaves a count that is too high, never too low.
            _write_count(counter, used + wanted if fits else used)
            if fits:
                partial.resize(num_bytes)
        return fits

    def publish(self, partial: Partial, path: Path) -> BinaryIO:
        """Make a partial file that has all its content the whole file at ``path``, durably and at once.

        Returns:
            the file, open for reading.
        """
        partial.finish()
        # Under the lock: one who counts while a file is renamed could see it under neither name, and count too little.
        with locked(self._lock_file):
            return partial.publish(path)

    def free_disk(self, num_bytes: int) -> bool:
        """Evict files that nobody has open until ``num_bytes`` are free on a full disk; False: there was none."""
        with locked(self._lock_file) as counter:
            before = sum(entry.num_bytes for entry in self._entries())
            used = self._evict(before - num_bytes, also_open=False)
            _write_count(counter, used)
        return used < before

    def count_anew(self) -> None:
        """Note that a file was put into the directory that nothing was reserved for."""
        with locked(self._lock_file) as counter:
            os.ftruncate(counter, 0)

    def is_fetching(self, besides: Path) -> bool:
        """Whether another file than ``besides`` is being fetched: when it is whole it can be evicted."""
        for entry in self._entries():
            if entry.num_bytes and entry.path.name.endswith(SUFFIX) and entry.path != besides:
                descriptor = try_lock(entry.path, create=False)
                if descriptor is None:
                    return True
                unlock(descriptor)
        return False

    def _evict(self, target_bytes: int, also_open: bool) -> int:
        """Delete files, the longest unused first, until what is left is at most ``target_bytes``; what is left."""
        entries = sorted(self._entries(), key=lambda entry: entry.last_use)
        used = sum(entry.num_bytes for entry in entries)
        if used <= target_bytes:
            return used
        roomy_bytes = min(target_bytes, int(self.max_bytes * (1 - _KEPT_FREE_SHARE)))
        left = []
        for entry in entries:
            if used > roomy_bytes and entry.evictable and _delete_unless_locked(entry.path):
                used -= entry.num_bytes
            else:
                left.append(entry)
        for entry in left:
            if also_open and used > target_bytes and entry.evictable and not entry.path.name.endswith(SUFFIX):
                entry.path.unlink(missing_ok=True)
                used -= entry.num_bytes
        return used

    def _entries(self) -> Iterator[_Entry]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                try:
                    found = os.stat(path, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield _Entry(path, found.st_size, found.st_mtime_ns, _EVICTABLE.fullmatch(name) is not None)

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn what the file system refuses into what the user can do about it."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UserError(
                    f"The disk of the cache {self.root} is full ({reason}) and the cache holds nothing that could be "
                    "evicted. Free some space or set data.cache.directory to a larger disk, then run the same command."
                ) from error
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise UserError(
                    f"The file system of the cache {self.root} has no file locks ({reason}). Set data.cache.directory "
                    "to a disk of this machine."
                ) from error
            if error.errno in _NOT_WRITABLE:
                raise UserError(
                    f"The cache directory {self.root} cannot be used ({reason}). Set data.cache.directory to a "
                    "directory that you can write, or correct its owner and mode."
                ) from error
            raise


_NOT_WRITABLE: Final = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG,
)  # fmt: skip


def checked_name(name: str) -> str:
    """A file's name within a corpus, which cannot lead out of it.

    Raises:
        UserError: absolute, hidden, with ``..`` or other than letters, digits, ``_ . -`` and ``/``.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not the name of a corpus file: only letters, digits, `_`, `.`, `-`, and `/` between parts "
            "that do not begin with a dot. The manifest is damaged or not to be trusted."
        )
    return name


def _read_count(descriptor: int) -> int | None:
    """Bytes counted so far, never too few; None where they must be counted anew."""
    digits = os.pread(descriptor, _COUNT_DIGITS, 0)
    return int(digits) if digits.isdigit() else None


def _write_count(descriptor: int, num_bytes: int) -> None:
    try:
        os.pwrite(descriptor, b"%0*d" % (_COUNT_DIGITS, num_bytes), 0)
    except OSError:  # A full disk: without a count, the next one counts.
        os.ftruncate(descriptor, 0)


def _delete_unless_locked(path: Path) -> bool:
    """Delete a file that no process fetches or has open."""
    try:
        descriptor = try_lock(path, create=False)
    except FileNotFoundError:
        return True
    if descriptor is None:
        return False
    try:
        path.unlink(missing_ok=True)
    finally:
        unlock(descriptor)
    return True
