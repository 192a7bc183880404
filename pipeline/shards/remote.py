"""A corpus behind a URL, through the node's cache."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from pipeline.base.errors import UserError
from pipeline.base.files import write_bytes_atomically
from pipeline.shards.cache import Cache, CacheSettings, checked_name
from pipeline.shards.download import Downloader
from pipeline.shards.files import CorpusFiles, Wanted
from pipeline.shards.locks import locked
from pipeline.shards.manifest import MANIFEST_NAME
from pipeline.shards.origin import AccessRefused, Origin
from pipeline.shards.partial import SUFFIX
from pipeline.shards.prefetch import Prefetcher

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""What a tokenizer folder may hold, the one file it must have first: a web server lists no folders."""


class RemoteFiles(CorpusFiles):
    """A corpus at ``https://``, ``s3://`` or another URL that fsspec reads by ranges.

    Files with a known digest are kept in the cache; others (manifest, tokenizer) are fetched by every object, so that a
    run never sees an older corpus than the server has. Safe in several threads and processes, after a fork, and to
    pickle: a copy shares the cache and nothing else.

    Args:
        location: URL of the folder with ``manifest.json``.
        cache: where files are kept; default: as :class:`~pipeline.shards.cache.CacheSettings` says.

    Raises:
        UserError: a URL that cannot be read, or a cache directory that cannot be written.
    """

    is_remote = True

    def __init__(self, location: str, cache: CacheSettings | None = None) -> None:
        self._settings = cache or CacheSettings()
        self._origin = Origin(location, self._settings.storage_options, self._settings.stall_seconds)
        self.location = self._origin.shown
        self._cache = Cache(self._settings, self._origin.url)
        self._downloader = Downloader(self._origin, self._cache, self._settings.retry_seconds)
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._prefetcher = Prefetcher(self._fetch, self._settings.download_threads)
        self._tokenizer_lock = threading.Lock()
        self._has_tokenizer = False

    def __getstate__(self) -> dict[str, Any]:
        own = ("_process", "_prefetcher", "_tokenizer_lock", "_has_tokenizer")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _after_fork(self) -> None:
        # A child has its parent's objects, but not the threads that would ever release their locks.
        if self._process != os.getpid():
            self._start()

    def describe(self, name: str) -> str:
        return self._origin.describe(name)

    def read(self, name: str, sha256: str | None = None) -> bytes:
        self._after_fork()
        if sha256 is None:
            return self._read_unchecked(checked_name(name))
        while True:
            with self.open(name, None, sha256) as file:
                content = file.read()
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
            self._cache.drop(self._cache.path(name, sha256))

    def _read_unchecked(self, name: str) -> bytes:
        try:
            return (self._derived / name).read_bytes()
        except FileNotFoundError:
            return self._fetch_unchecked(name)

    def _fetch_unchecked(self, name: str) -> bytes:
        try:
            return self._downloader.content(name)
        except AccessRefused as refused:
            # S3 answers so for a file that does not exist, where the bucket may not be listed.
            if name == MANIFEST_NAME:
                raise
            try:
                self._downloader.content(MANIFEST_NAME)
            except (UserError, FileNotFoundError):
                raise refused from None
            raise FileNotFoundError(f"{self.describe(name)} does not exist, or access to it is refused") from None

    def open(self, name: str, num_bytes: int | None = None, sha256: str | None = None) -> BinaryIO:
        self._after_fork()
        if sha256 is None:
            raise ValueError(f"{name}: a remote file is opened by its sha256")
        path = self._cache.path(name, sha256)
        while True:
            with self._cache.disk_errors():
                file = self._cache.open(path, num_bytes)
            if file is None and not self._prefetcher.wait_for(name):
                file = self._downloader.fetch(name, path, num_bytes, sha256)
            if file is not None:
                return file

    def fetch_ahead(self, wanted: Sequence[Wanted]) -> None:
        self._after_fork()
        # A list longer than the cache would evict its own head; half leaves room for what is open now.
        fitting: list[Wanted] = []
        room_bytes = self._settings.max_bytes // 2
        for name, num_bytes, sha256 in wanted:
            room_bytes -= num_bytes or 0
            if room_bytes < 0:
                break
            fitting.append((name, num_bytes, sha256))
        self._prefetcher.replace(fitting)

    def _fetch(self, name: str, num_bytes: int | None, sha256: str) -> None:
        path = self._cache.path(name, sha256)
        file = self._downloader.fetch(name, path, num_bytes, sha256)
        if file is None:
            with self._cache.disk_errors():
                file = self._cache.open(path, num_bytes)  # notes the use: it is needed soon, however old it is
        if file is not None:
            file.close()

    def distrust(self, name: str) -> None:
        self._after_fork()
        for path in self._cache.folder.glob(f"{checked_name(name)}.*"):
            if not path.name.endswith(SUFFIX):
                self._cache.drop(path)

    def keep_derived(self, name: str, content: bytes) -> None:
        write_bytes_atomically(self._derived / checked_name(name), content)
        self._cache.count_anew()

    @contextmanager
    def lock_derived(self) -> Iterator[None]:
        with self._cache.disk_errors():
            self._derived.mkdir(exist_ok=True)
            with locked(self._derived / ".lock"):
                yield

    @property
    def _derived(self) -> Path:
        return self._cache.folder / "derived"

    def tokenizer_directory(self) -> Path:
        self._after_fork()
        folder = self._cache.folder / "tokenizer"
        with self._tokenizer_lock:
            if not self._has_tokenizer:
                for name in TOKENIZER_FILES:
                    self._mirror(f"tokenizer/{name}", folder / name, required=name == TOKENIZER_FILES[0])
                self._has_tokenizer = True
        return folder

    def _mirror(self, name: str, path: Path, required: bool) -> None:
        try:
            content = self._fetch_unchecked(name)
        except FileNotFoundError as error:
            if required:
                raise UserError(
                    f"{self.describe(name)} does not exist: the corpus has no tokenizer. Upload it again, whole."
                ) from error
            path.unlink(missing_ok=True)
            return
        with self._cache.disk_errors():
            if not path.is_file() or path.read_bytes() != content:
                write_bytes_atomically(path, content)
                self._cache.count_anew()
