"""Fetching what will be needed soon: a queue that its owner replaces, and threads that come and go."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.shards.files import Wanted


class Prefetcher:
    """Fetches files of one process ahead of need.

    The threads end when the queue is empty, so an idle object costs nothing; they are daemons, so they never hold up
    the end of a process.

    Args:
        fetch: brings one file into the cache.
        num_threads: files fetched at the same time.
    """

    def __init__(self, fetch: Callable[[str, int | None, str], None], num_threads: int) -> None:
        self._fetch = fetch
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._queue: deque[Wanted] = deque()
        self._last_asked: list[Wanted] = []
        self._under_way: dict[str, Future[None]] = {}
        self._num_running = 0

    def replace(self, wanted: Sequence[Wanted]) -> None:
        """Fetch these from now on, the first first; what is under way is finished."""
        with self._lock:
            if list(wanted) == self._last_asked:
                return
            self._last_asked = list(wanted)
            self._queue = deque(one for one in wanted if one[0] not in self._under_way)
            while self._num_running < min(self._num_threads, len(self._queue)):
                self._num_running += 1
                threading.Thread(target=self._work, name="pretrain-download", daemon=True).start()

    def wait_for(self, name: str) -> bool:
        """Wait for a file that is under way; False if it is not.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it cannot be had.
        """
        with self._lock:
            future = self._under_way.get(name)
            if future is None:
                self._queue = deque(one for one in self._queue if one[0] != name)
                return False
        future.result()
        return True

    def _next(self) -> tuple[Wanted, Future[None]] | None:
        with self._lock:
            if not self._queue:
                self._num_running -= 1
                return None
            one = self._queue.popleft()
            future = self._under_way[one[0]] = Future()
            return one, future

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            one, future = taken
            try:
                self._fetch(*one)
            except BaseException as error:  # It is raised where the file is waited for.
                known = isinstance(error, UserError | FileNotFoundError)
                get_logger("download").warning("fetching %s ahead: %s", one[0], error, exc_info=not known)
                future.set_exception(error)
            else:
                future.set_result(None)
            with self._lock:
                del self._under_way[one[0]]
