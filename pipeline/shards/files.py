"""Where the files of a corpus are: one interface for a local directory and for a remote one with a cache.

Names are relative to the corpus and always use ``/``: ``"manifest.json"``, ``"train/00007.tar"``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.base.errors import UserError
from pipeline.base.files import write_bytes_atomically

if TYPE_CHECKING:
    from pipeline.shards.cache import CacheSettings


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
    def fetch_ahead(self, wanted: Sequence[tuple[str, int, str]]) -> None:
        """Start fetching files (name, bytes, sha256) in the background, the most urgent first; replaces what was asked
        before. Local files need nothing."""

    @abstractmethod
    def keep_derived(self, name: str, content: bytes) -> None:
        """Keep a derived file (a row table) for later readers, where there is a place for it.

        Raises:
            OSError: there is none.
        """

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

    def describe(self, name: str) -> str:
        return str(self.directory / name)

    def read(self, name: str, sha256: str | None = None) -> bytes:
        return self._inside(name).read_bytes()

    def open(self, name: str, num_bytes: int | None = None, sha256: str | None = None) -> BinaryIO:
        return open(self._inside(name), "rb")

    def fetch_ahead(self, wanted: Sequence[tuple[str, int, str]]) -> None:
        pass

    def keep_derived(self, name: str, content: bytes) -> None:
        write_bytes_atomically(self._inside(name), content)

    def tokenizer_directory(self) -> Path:
        return self.directory / "tokenizer"

    def _inside(self, name: str) -> Path:
        """The path of a file, which must not leave the corpus by ``..``, an absolute name or a link.

        Raises:
            UserError: it does.
        """
        path = self.directory / name
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise UserError(
                f"{path} leads outside the corpus directory {self.directory} (to {path.resolve()}): a corpus holds its "
                "own files. Copy the file in place of the link, or build the corpus again."
            )
        return path


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
