"""Fetching until they are right: resumed where they stopped, tried again with growing pauses, checked by sha256."""

from __future__ import annotations

import errno
import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.shards.cache import Cache
from pipeline.shards.origin import Origin, PastTheEnd, Unreachable
from pipeline.shards.partial import Partial

_MOST_BYTES_A_REQUEST: Final = 8 << 20
_LEAST_BYTES_A_REQUEST: Final = 64 << 10
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 10.0
_MOST_COPIES: Final = 20
_POLL_SECONDS: Final = 0.02
_NOTICE_SECONDS: Final = 60.0

ResultT = TypeVar("ResultT")


class _Patience:
    """How long one file has not come on, and how long to wait before the next try."""

    def __init__(self, url: str, retry_seconds: float) -> None:
        self.url = url
        self.retry_seconds = retry_seconds
        self.progressed()

    def progressed(self) -> None:
        """Bytes came."""
        self.since = time.monotonic()
        self.num_failures = 0

    def failed(self, cause: str) -> None:
        """Wait before the next try: twice as long each time, with jitter so that ranks do not come back together.

        Raises:
            UserError: it has not come on for ``retry_seconds``.
        """
        left_seconds = self.since + self.retry_seconds - time.monotonic()
        if left_seconds <= 0:
            raise UserError(
                f"{self.url} could not be fetched for {self.retry_seconds:g} seconds (data.cache.retry_seconds); the "
                f"last attempt failed with {cause}. Check that the server is up and can be reached from this node, "
                "then run the same command again: it goes on exactly where it stopped, and what was fetched is kept."
            )
        pause_seconds = min(_FIRST_PAUSE_SECONDS * 2**self.num_failures, _LONGEST_PAUSE_SECONDS)
        self.num_failures += 1
        if pause_seconds >= 1:
            get_logger("download").warning("%s: %s; trying again", self.url, cause)
        time.sleep(min(pause_seconds * random.uniform(0.5, 1.5), left_seconds))


class _Copies:
    """Whole copies of a file that came. The same wrong one twice is the server's file itself, not an accident on the
    way; of a file whose digest nobody knows, the same one twice is right."""

    def __init__(self, url: str, sha256: str | None) -> None:
        self.url = url
        self.sha256 = sha256
        self.seen: set[str] = set()

    def is_right(self, found: str) -> bool:
        """Whether a copy is the one; ``found`` says what it is: ``"sha256 ..."``.

        Raises:
            UserError: more copies are of no use.
        """
        if self.sha256 is None and found in self.seen:
            return True
        if self.sha256 is not None and found == f"sha256 {self.sha256}":
            return True
        if found in self.seen or len(self.seen) >= _MOST_COPIES:
            expected = "every copy another one" if self.sha256 is None else f"the manifest says sha256 {self.sha256}"
            raise UserError(
                f"{self.url} has {found}; {expected}. The file on the server is not this corpus's: upload the corpus "
                "again, whole, or build it again. If it was replaced while this ran, start the command again."
            )
        self.seen.add(found)
        return False


class Downloader:
    """Puts remote files into the cache. Holds no state: safe in several threads, to fork and to pickle."""

    def __init__(self, origin: Origin, cache: Cache, retry_seconds: float) -> None:
        self.origin = origin
        self.cache = cache
        self.retry_seconds = retry_seconds

    def content(self, name: str, sha256: str | None = None) -> bytes:
        """A whole small file in memory; without a digest, two equal copies in turn prove it.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it cannot be had.
        """
        url = self.origin.describe(name)
        patience = _Patience(url, self.retry_seconds)
        copies = _Copies(url, sha256)
        while True:
            try:
                content = self.origin.read(name)
            except PastTheEnd:
                content = b""
            except Unreachable as error:
                patience.failed(str(error))
                continue
            found = f"sha256 {hashlib.sha256(content).hexdigest()}"
            if copies.is_right(found):
                return content
            if sha256 is not None:
                patience.failed(found)

    def fetch(self, name: str, path: Path, num_bytes: int | None, sha256: str) -> BinaryIO | None:
        """Have a file in the cache: fetch it, or wait until another process or thread has.

        Args:
            path: where it belongs in the cache.

        Returns:
            the file, open, if this call fetched it; None if it was there in the end.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it cannot be had, or cannot be kept.
        """
        begun = noticed = time.monotonic()
        with self.cache.disk_errors():
            while not path.is_file():
                partial = self._with_room(lambda: self.cache.claim(path), _LEAST_BYTES_A_REQUEST, path)
                if partial is not None:
                    with partial:
                        # Another may have published it between the look and the claim.
                        if not path.is_file():
                            self._fetch_into(partial, name, num_bytes, sha256)
                            return self.cache.publish(partial, path)
                        partial.discard()
                time.sleep(_POLL_SECONDS)
                if time.monotonic() - noticed > _NOTICE_SECONDS:
                    noticed = time.monotonic()
                    message = "waiting for %s, which another process fetches, since %.0f seconds"
                    get_logger("download").warning(message, self.origin.describe(name), noticed - begun)
        return None

    def _fetch_into(self, partial: Partial, name: str, num_bytes: int | None, sha256: str) -> None:
        content = self.content(name, sha256) if num_bytes is None else b""
        size = len(content) if num_bytes is None else num_bytes
        while not self.cache.reserve(partial, size):
            time.sleep(_POLL_SECONDS)  # until other downloads are done: a whole file can be evicted
        if num_bytes is None:
            self._write(partial, 0, content)
        else:
            self._fill_rightly(partial, name, num_bytes, sha256)

    def _fill_rightly(self, partial: Partial, name: str, num_bytes: int, sha256: str) -> None:
        url = self.origin.describe(name)
        patience = _Patience(url, self.retry_seconds)
        copies = _Copies(url, sha256)
        resumed = partial.num_done > 0
        while True:
            self._fill(partial, name, num_bytes, patience)
            whole = partial.num_done == num_bytes
            found = f"sha256 {partial.sha256()}" if whole else f"{partial.num_done} bytes of {num_bytes}"
            # What an earlier process left may be of anything: no fault of the server's.
            if resumed and found != f"sha256 {sha256}":
                resumed = False
                partial.resize(num_bytes)
            elif copies.is_right(found):
                return
            else:
                partial.resize(num_bytes)
                patience.failed(found)

    def _fill(self, partial: Partial, name: str, num_bytes: int, patience: _Patience) -> None:
        """Fetch what is missing, in ranges that shrink while the connection is bad; less if the file is shorter."""
        num_asked = _MOST_BYTES_A_REQUEST
        while (begin := partial.num_done) < num_bytes:
            end = min(begin + num_asked, num_bytes)
            try:
                content = self.origin.read(name, begin, end)
            except PastTheEnd:
                return
            except Unreachable as error:
                num_asked = max(num_asked // 2, _LEAST_BYTES_A_REQUEST)
                patience.failed(str(error))
                continue
            if len(content) > end - begin:  # The server ignores ranges, and this is the file from its start.
                begin, content = 0, content[:num_bytes]
                if len(content) <= partial.num_done:
                    return
            if not content:
                patience.failed("an empty answer")
                continue
            self._write(partial, begin, content)
            patience.progressed()
            num_asked = min(2 * num_asked, _MOST_BYTES_A_REQUEST)

    def _write(self, partial: Partial, begin: int, content: bytes) -> None:
        self._with_room(lambda: partial.write(begin, content), len(content), partial.path)

    def _with_room(self, act: Callable[[], ResultT], num_bytes: int, partial: Path) -> ResultT:
        """Do what needs space; on a full disk evict files, or wait for downloads that can then be evicted."""
        patience_ends = time.monotonic() + self.retry_seconds
        while True:
            try:
                return act()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or time.monotonic() > patience_ends:
                    raise
                if not self.cache.free_disk(num_bytes):
                    if not self.cache.is_fetching(besides=partial):
                        raise
                    time.sleep(_POLL_SECONDS)
