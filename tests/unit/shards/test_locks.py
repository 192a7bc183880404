"""Locks on files."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from pipeline.shards.locks import is_at, locked, try_lock, unlock


def test_one_has_a_lock_at_a_time_among_threads_too(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = try_lock(path, create=True)
    assert first is not None
    assert try_lock(path, create=False) is None
    unlock(first)
    second = try_lock(path, create=False)
    assert second is not None
    unlock(second)


def test_a_lock_on_no_file_is_an_error_unless_it_is_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        try_lock(tmp_path / "lock", create=False)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        try_lock(tmp_path / "link", create=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_child_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready, say_ready = os.pipe()
    with locked(path):
        child = os.fork()
        if child == 0:
            os.write(say_ready, b"1")
            signal.pause()
    try:
        os.read(ready, 1)
        again = try_lock(path, create=False)
        assert again is not None
        unlock(again)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_waiting_for_a_lock_counts_every_turn(tmp_path: Path) -> None:
    path = tmp_path / "count"

    def count() -> None:
        for _ in range(50):
            with locked(path) as descriptor:
                number = int(os.pread(descriptor, 8, 0) or b"0")
                os.pwrite(descriptor, b"%08d" % (number + 1), 0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(path.read_text()) == 200


def test_an_open_file_knows_that_it_was_renamed_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = try_lock(path, create=True)
    assert descriptor is not None
    assert is_at(descriptor, path)
    path.rename(tmp_path / "other")
    assert not is_at(descriptor, path)
    path.write_bytes(b"")
    assert not is_at(descriptor, path)
    assert is_at(descriptor, tmp_path / "other")
    unlock(descriptor)
