"""A file on its way into the cache: whoever has it open has it locked, and what it holds survives a kill.

On disk: the content, as far as it came, in a (sparse) file that already has its final size, then 8 bytes that say how
far. So the size of a partial file is what it will take, which the cache counts from the start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final, Self

from pipeline.base.files import fsync_directory
from pipeline.shards.locks import is_at, try_lock, unlock

SUFFIX: Final = ".partial"
_MARK_BYTES: Final = 8
_CHUNK_BYTES: Final = 1 << 20


class Partial:
    """A locked partial file; use it as a context, which unlocks it. What was written stays for the next one."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def claim(cls, path: Path) -> Self | None:
        """Lock the partial file at a path, new or left by one that died; None while another has it.

        Raises:
            OSError: its directory cannot be written or has no locks.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = try_lock(path, create=True)
        if descriptor is None:
            return None
        if not is_at(descriptor, path):
            unlock(descriptor)
            return None
        return cls(path, descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        unlock(self.descriptor)

    @property
    def size_on_disk(self) -> int:
        """Bytes that the cache counts for it."""
        return os.fstat(self.descriptor).st_size

    @staticmethod
    def size_for(num_bytes: int) -> int:
        """``size_on_disk`` once it is sized for this much content."""
        return num_bytes + _MARK_BYTES

    def resize(self, num_bytes: int) -> None:
        """Empty it, and give it its final size."""
        self.empty()
        os.ftruncate(self.descriptor, self.size_for(num_bytes))

    def empty(self) -> None:
        """Give up its size and what it holds."""
        os.ftruncate(self.descriptor, 0)

    @property
    def num_bytes(self) -> int:
        """Size of the content when whole."""
        return self.size_on_disk - _MARK_BYTES

    @property
    def num_done(self) -> int:
        """Bytes of content that are there, from the start."""
        mark = int.from_bytes(os.pread(self.descriptor, _MARK_BYTES, self.num_bytes), "little")
        return min(mark, self.num_bytes)

    def write(self, begin: int, content: bytes) -> None:
        """Write content that begins at byte ``begin``, and note that everything up to its end is there.

        Raises:
            OSError: the disk is full; what was noted before still holds.
        """
        written = 0
        while written < len(content):
            written += os.pwrite(self.descriptor, memoryview(content)[written:], begin + written)
        os.pwrite(self.descriptor, (begin + len(content)).to_bytes(_MARK_BYTES, "little"), self.num_bytes)

    def sha256(self) -> str:
        """Hex digest of the content."""
        digest = hashlib.sha256()
        for begin in range(0, self.num_bytes, _CHUNK_BYTES):
            digest.update(os.pread(self.descriptor, min(_CHUNK_BYTES, self.num_bytes - begin), begin))
        return digest.hexdigest()

    def finish(self) -> None:
        """Make what it holds durable, without the mark at its end."""
        os.ftruncate(self.descriptor, self.num_bytes)
        os.fsync(self.descriptor)

    def publish(self, path: Path) -> BinaryIO:
        """Make it, finished, the whole file at ``path``, at once.

        Returns:
            the file, open for reading and locked as a reader's: it stays readable even if it is evicted at once.
        """
        file = open(self.path, "rb")  # noqa: SIM115 - the caller closes it
        try:
            os.rename(self.path, path)
            fsync_directory(path.parent)
            for descriptor in (self.descriptor, file.fileno()):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            file.close()
            raise
        return file

    def discard(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)
