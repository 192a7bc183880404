"""Partial files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.shards.partial import Partial

CONTENT = bytes(range(256)) * 10


def claimed(path: Path) -> Partial:
    partial = Partial.claim(path)
    assert partial is not None
    return partial


def test_what_was_written_is_found_by_the_next_and_published_whole(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a.partial"
    with claimed(path) as partial:
        partial.resize(len(CONTENT))
        assert partial.num_done == 0
        partial.write(0, CONTENT[:1000])
    with claimed(path) as partial:
        assert (partial.num_bytes, partial.num_done) == (len(CONTENT), 1000)
        partial.write(1000, CONTENT[1000:])
        assert partial.num_done == len(CONTENT)
        assert partial.sha256() == hashlib.sha256(CONTENT).hexdigest()
        partial.finish()
        with partial.publish(tmp_path / "train" / "a") as file:
            (tmp_path / "train" / "a").rename(tmp_path / "moved")
            assert file.read() == CONTENT
        (tmp_path / "moved").rename(tmp_path / "train" / "a")
    assert (tmp_path / "train" / "a").read_bytes() == CONTENT
    assert not path.exists()


def test_its_size_is_what_it_will_take_from_the_start(tmp_path: Path) -> None:
    with claimed(tmp_path / "a") as partial:
        assert partial.size_on_disk == 0
        partial.resize(5000)
        assert partial.size_on_disk == partial.size_for(5000) == (tmp_path / "a").stat().st_size
        partial.write(0, bytes(5000))
        assert partial.size_on_disk == partial.size_for(5000)


def test_resizing_forgets_what_was_there(tmp_path: Path) -> None:
    with claimed(tmp_path / "a") as partial:
        partial.resize(100)
        partial.write(0, bytes([7]) * 100)
        partial.resize(100)
        assert partial.num_done == 0
        assert (tmp_path / "a").read_bytes()[:100] == bytes(100)


def test_one_has_it_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "a"):
        assert Partial.claim(tmp_path / "a") is None
    with claimed(tmp_path / "a"):
        pass


@pytest.mark.parametrize("mark", [b"\xff" * 8, b"\x00" * 7 + b"\x01"])
def test_a_damaged_mark_never_claims_more_than_the_file_holds(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "a").write_bytes(bytes(64) + mark)
    with claimed(tmp_path / "a") as partial:
        assert partial.num_done <= partial.num_bytes == 64
