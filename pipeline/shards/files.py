"""Where the files of a corpus are: one interface for a local directory and for a remote one with a cache.

Names are relative to the corpus and always use ``/``: ``"manifest.json"``, ``"train/00007.tar"``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.base.errors import UserError
from pipeline.base.files import write_bytes_atomically

if TYPE_CHECKING:
    from pipeline.shards.cache import CacheSettings


Wanted = tuple[str, int | None, str]
"""Name, bytes (None: not known beforehand, as of an index) and sha256 of a file."""


class CorpusFiles(ABC):
    """The files of one corpus. Picklable: loader processes get it."""

    location: str
    """As the user wrote it: a directory or a URL."""

    is_remote: bool
    """Whether opening a file may cost a download."""

    @abstractmethod
    def describe(self, name: str) -> str:
        """Path or URL of a file, for messages."""

    @abstractmethod
    def read(self, name: str, sha256: str | None = None) -> bytes:
        """Content of a small file (manifest, index, row table).

        Args:
            sha256: hex digest that the content must have, where it is known; checked only where the bytes travelled.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it cannot be had.
        """

    @abstractmethod
    def open(self, name: str, num_bytes: int | None = None, sha256: str | None = None) -> BinaryIO:
        """A local, whole, seekable file with a descriptor that can be mapped; as :meth:`read` otherwise.

        Args:
            num_bytes: size that the file must have, where it is known.
        """

    @abstractmethod
    def fetch_ahead(self, wanted: Sequence[Wanted]) -> None:
        """Start fetching files in the background, the most urgent first; replaces what was asked before. Local files
        need nothing."""

    def distrust(self, name: str) -> None:
        """Forget a fetched copy whose bytes turned out wrong: the next :meth:`open` fetches it again."""
        return

    @abstractmethod
    def keep_derived(self, name: str, content: bytes) -> None:
        """Keep a derived file (a row table) for later readers, where there is a place for it.

        Raises:
            OSError: there is none.
        """

    def lock_derived(self) -> AbstractContextManager[None]:
        """Held while a derived file is made, so that of several processes one makes it."""
        return nullcontext()

    @abstractmethod
    def tokenizer_directory(self) -> Path:
        """A local folder with the tokenizer's files.

        Raises:
            UserError: they cannot be had.
        """


class LocalFiles(CorpusFiles):
    """A corpus directory on a file system."""

    is_remote = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.location = str(directory)
        self._root = os.path.realpath(directory)
        self._folders_inside: set[str] = set()

    def describe(self, name: str) -> str:
        return os.path.join(self.location, name)

    def read(self, name: str, sha256: str | None = None) -> bytes:
        with reading(path := self._inside(name)), _opened(path) as file:
            return file.read()

    def open(self, name: str, num_bytes: int | None = None, sha256: str | None = None) -> BinaryIO:
        with reading(path := self._inside(name)):
            return _opened(path)

    def fetch_ahead(self, wanted: Sequence[Wanted]) -> None:
        pass

    def keep_derived(self, name: str, content: bytes) -> None:
        write_bytes_atomically(self.path(name), content)

    @contextmanager
    def lock_derived(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                path = self.path("rows/.lock")
                path.parent.mkdir(exist_ok=True)
                lock = stack.enter_context(open(path, "ab"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass  # not writable, or a file system without locks: every process makes its own
            yield

    def tokenizer_directory(self) -> Path:
        directory = self.path("tokenizer")
        for path in directory.glob("*"):
            self.path(f"tokenizer/{path.name}")
        return directory

    def path(self, name: str) -> Path:
        """The path of a file or folder, which must not leave the corpus by ``..``, an absolute name or a link.

        Raises:
            UserError: it does.
        """
        return Path(self._inside(name))

    def _inside(self, name: str) -> str:
        """As :meth:`path`. Resolving is slow and a corpus may have 100,000 indexes: their folder is resolved once, they
        only where they are links."""
        path, folder = self.describe(name), os.path.dirname(name)
        if folder not in self._folders_inside:
            self._check_inside(self.describe(folder))
            self._folders_inside.add(folder)
        if ".." in name or os.path.islink(path):
            self._check_inside(path)
        return path

    def _check_inside(self, path: str) -> None:
        resolved = os.path.realpath(path)  # unlike Path.resolve, it leaves links in a circle to whoever opens them
        if not Path(resolved).is_relative_to(self._root):
            raise UserError(
                f"{path} leads outside the corpus directory {self.directory} (to {resolved}): a corpus holds its "
                "own files. Copy the file in place of the link, or build the corpus again."
            )


def _opened(path: str) -> BinaryIO:
    """Open a file without waiting: a pipe would wait for its writer, for ever."""
    file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is not a plain file. Restore the file or build the corpus again.")
    return file


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file that cannot be read. Absence and too many open files mean something to whoever asks."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EMFILE, errno.ENFILE):
            raise
        raise UserError(f"{path} cannot be read ({error.strerror}). Check its owner, its mode and the disk.") from error


def corpus_files(location: str | Path, cache: CacheSettings | None = None) -> CorpusFiles:
    """The files of the corpus at a path, or at a URL (with ``://``), which need a place on this machine.

    Args:
        cache: of remote files; default: as :class:`CacheSettings` says.

    Raises:
        UserError: the URL's kind is unknown or needs a library that is missing.
    """
    if "://" not in str(location):
        return LocalFiles(Path(location))
    from pipeline.shards.remote import RemoteFiles

    return RemoteFiles(str(location), cache)
