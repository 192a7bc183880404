"""The queue of files fetched ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pipeline.base.errors import UserError
from pipeline.shards.prefetch import Prefetcher, Wanted


def named(*names: str) -> list[Wanted]:
    return [(name, 1, "") for name in names]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


class Gate:
    """A fetch that notes its names and lets each through when told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open = {name: threading.Event() for name in "abcdef"}

    def fetch(self, name: str, num_bytes: int, sha256: str) -> None:
        self.begun.append(name)
        assert self.open[name].wait(10)


def test_the_first_are_fetched_first_and_only_so_many_at_a_time() -> None:
    gate = Gate()
    prefetcher = Prefetcher(gate.fetch, 2)
    prefetcher.replace(named("a", "b", "c"))
    until(lambda: len(gate.begun) == 2)
    assert sorted(gate.begun) == ["a", "b"]
    gate.open["a"].set()
    until(lambda: len(gate.begun) == 3)
    for event in gate.open.values():
        event.set()
    until(lambda: not prefetcher.wait_for("c"))


def test_a_new_list_replaces_what_has_not_begun() -> None:
    gate = Gate()
    prefetcher = Prefetcher(gate.fetch, 1)
    prefetcher.replace(named("a", "b", "c"))
    until(lambda: gate.begun == ["a"])
    prefetcher.replace(named("a", "e", "d"))
    for event in gate.open.values():
        event.set()
    until(lambda: len(gate.begun) == 3)
    assert gate.begun == ["a", "e", "d"]


def test_waiting_lasts_until_the_file_is_there_and_nothing_else_waits() -> None:
    gate = Gate()
    prefetcher = Prefetcher(gate.fetch, 1)
    prefetcher.replace(named("a", "b"))
    until(lambda: gate.begun == ["a"])
    assert not prefetcher.wait_for("b")  # not begun: whoever asks fetches it
    assert not prefetcher.wait_for("f")
    waited: list[bool] = []
    waiter = threading.Thread(target=lambda: waited.append(prefetcher.wait_for("a")))
    waiter.start()
    time.sleep(0.05)
    assert not waited
    gate.open["a"].set()
    waiter.join(10)
    assert waited == [True]
    assert gate.begun == ["a"]


def test_an_error_is_raised_where_it_is_waited_for_and_the_rest_goes_on() -> None:
    begun: list[str] = []
    let_fail = threading.Event()

    def fetch(name: str, num_bytes: int, sha256: str) -> None:
        begun.append(name)
        if name == "a":
            assert let_fail.wait(10)
            raise UserError("the server is down")

    prefetcher = Prefetcher(fetch, 1)
    prefetcher.replace(named("a", "b"))
    until(lambda: begun == ["a"])
    threading.Timer(0.05, let_fail.set).start()
    with pytest.raises(UserError, match="the server is down"):
        prefetcher.wait_for("a")
    until(lambda: begun == ["a", "b"])
    prefetcher.replace(named("a"))
    until(lambda: begun == ["a", "b", "a"])


def test_threads_end_with_the_queue() -> None:
    prefetcher = Prefetcher(lambda *_: None, 3)
    for _ in range(5):
        prefetcher.replace(named("a", "b", "c"))
        prefetcher.replace([])
    until(lambda: not any(thread.name == "pretrain-download" for thread in threading.enumerate()))
