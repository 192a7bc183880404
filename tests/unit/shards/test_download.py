"""Downloads from a server that misbehaves: time is lost, nothing else."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards import download
from pipeline.shards.cache import Cache
from pipeline.shards.download import Downloader
from pipeline.shards.origin import Origin
from tests.remote_corpora import quick_settings
from tests.servers import FAULTS, HostileServer, free_port, serving

NUM_BYTES = 1_000_000
CONTENT = np.random.default_rng(0).integers(0, 256, NUM_BYTES, np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(CONTENT)
    return tmp_path / "served"


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in ten ranges, so that they can break between."""
    monkeypatch.setattr(download, "_MOST_BYTES_A_REQUEST", 100_000)
    monkeypatch.setattr(download, "_LEAST_BYTES_A_REQUEST", 10_000)


def downloader(url: str, tmp_path: Path, retry_seconds: float = 20.0, **settings: object) -> tuple[Downloader, Path]:
    """With the path of ``a.tar`` in its cache."""
    cache = Cache(quick_settings(tmp_path / "cache", **settings), url)
    return Downloader(Origin(url, {}, 0.2), cache, retry_seconds), cache.path("a.tar", SHA256)


def fetched(server: HostileServer, tmp_path: Path) -> bytes:
    loader, path = downloader(server.url, tmp_path)
    file = loader.fetch("a.tar", path, NUM_BYTES, SHA256)
    assert file is not None
    file.close()
    assert loader.fetch("a.tar", path, NUM_BYTES, SHA256) is None
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # no partial file is left
    return path.read_bytes()


def test_a_file_comes_in_ranges_each_asked_for_once(folder: Path, tmp_path: Path, small_requests: None) -> None:
    with serving(folder) as server:
        assert fetched(server, tmp_path) == CONTENT
    assert [asked for _, asked in server.requests] == [
        f"bytes={begin}-{begin + 99_999}" for begin in range(0, NUM_BYTES, 100_000)
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_at_the_start_in_the_middle_and_twice(
    folder: Path, tmp_path: Path, small_requests: None, fault: str
) -> None:
    with serving(folder, always={"a.tar": [fault, "", "", fault, fault, "", fault]}, stall_seconds=1.0) as server:
        assert fetched(server, tmp_path) == CONTENT
    assert server.faults[fault] >= 1


def test_a_server_that_trickles_is_given_up_at_last(folder: Path, tmp_path: Path, small_requests: None) -> None:
    with serving(folder, always={"a.tar": ["", "trickle"]}) as server:
        cache = Cache(quick_settings(tmp_path / "cache"), server.url)
        path = cache.path("a.tar", SHA256)
        Downloader(Origin(server.url, {}, 0.05), cache, 20.0).fetch("a.tar", path, NUM_BYTES, SHA256)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests][1:3] == ["bytes=100000-199999", "bytes=100000-149999"]


@pytest.mark.parametrize("seed", range(2))
def test_a_fifth_of_the_requests_failing_and_worse(
    folder: Path, tmp_path: Path, small_requests: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(download, "_MOST_BYTES_A_REQUEST", 25_000)
    shares = {"error500": 0.1, "error503": 0.05, "reset": 0.05, "truncate": 0.05, "cut_header": 0.05}
    shares |= {"wrong_byte": 0.01}
    with serving(folder, shares=shares, seed=seed) as server:
        assert fetched(server, tmp_path) == CONTENT
    assert sum(server.faults.values()) > 8


def test_a_server_without_ranges_works(folder: Path, tmp_path: Path, small_requests: None) -> None:
    with serving(folder, shares={"no_ranges": 1.0}) as server:
        assert fetched(server, tmp_path) == CONTENT
    assert len(server.requests) == 1


def test_a_broken_download_goes_on_where_it_stopped(folder: Path, tmp_path: Path, small_requests: None) -> None:
    with serving(folder, always={"a.tar": ["", "", ""] + ["error503"] * 50}) as server:
        loader, path = downloader(server.url, tmp_path, retry_seconds=0.2)
        with pytest.raises(UserError, match="could not be fetched"):
            loader.fetch("a.tar", path, NUM_BYTES, SHA256)
        server.always.clear()
        server.requests.clear()
        loader.fetch("a.tar", path, NUM_BYTES, SHA256)
        assert server.requests[0] == ("a.tar", "bytes=300000-399999")
    assert path.read_bytes() == CONTENT


def test_a_wrong_partial_file_is_fetched_anew(folder: Path, tmp_path: Path, small_requests: None) -> None:
    with serving(folder) as server:
        loader, path = downloader(server.url, tmp_path)
        partial = loader.cache.claim(path)
        assert partial is not None
        with partial:
            loader.cache.reserve(partial, NUM_BYTES)
            partial.write(0, bytes(950_000))
        loader.fetch("a.tar", path, NUM_BYTES, SHA256)
        assert path.read_bytes() == CONTENT
        assert [asked for _, asked in server.requests][:2] == ["bytes=950000-999999", "bytes=0-99999"]


def other(content: bytes) -> bytes:
    return content[:500] + b"x" + content[501:]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (other, f"sha256 {hashlib.sha256(other(CONTENT)).hexdigest()}"),
        (lambda content: content[:-1000], "999000 bytes of 1000000"),
        (lambda content: b"", "0 bytes of 1000000"),
        (lambda content: b"x" + content, "sha256"),
    ],
    ids=["changed", "shorter", "empty", "longer"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_another_file_on_the_server_is_said_and_not_tried_for_ever(
    folder: Path, tmp_path: Path, change: Callable[[bytes], bytes], found: str, ranges: bool
) -> None:
    (folder / "a.tar").write_bytes(change(CONTENT))
    with serving(folder, shares={} if ranges else {"no_ranges": 1.0}) as server:
        loader, path = downloader(server.url, tmp_path, retry_seconds=1.0 if change(CONTENT) == b"" else 20.0)
        with pytest.raises(UserError) as raised:
            loader.fetch("a.tar", path, NUM_BYTES, SHA256)
    assert f"{server.url}/a.tar" in str(raised.value)
    assert found in str(raised.value) or "an empty answer" in str(raised.value)
    assert not path.exists()


def test_a_server_that_stays_down_names_url_cause_and_way_out(folder: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    loader, path = downloader(url, tmp_path, retry_seconds=0.3)
    for attempt in (lambda: loader.fetch("a.tar", path, NUM_BYTES, SHA256), lambda: loader.content("a.tar")):
        with pytest.raises(UserError) as raised:
            attempt()
        for part in (f"{url}/a.tar could not be fetched for 0.3 seconds", "Connect call failed", "same command again"):
            assert part in str(raised.value)


def test_a_server_that_comes_back_in_time_is_no_error(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    loader, path = downloader(f"http://127.0.0.1:{port}", tmp_path)
    thread = threading.Thread(target=loader.fetch, args=("a.tar", path, NUM_BYTES, SHA256))
    thread.start()
    time.sleep(0.4)
    assert not path.exists()
    with serving(folder, port=port):
        thread.join(20)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["error401", "error403", "error400"])
def test_final_answers_are_not_tried_again(folder: Path, tmp_path: Path, fault: str) -> None:
    with serving(folder, shares={fault: 1.0}) as server:
        loader, path = downloader(server.url, tmp_path)
        with pytest.raises(UserError, match=f"{fault[5:]}.*data.cache.storage_options"):
            loader.fetch("a.tar", path, NUM_BYTES, SHA256)
        server.shares.clear()
        with pytest.raises(FileNotFoundError, match=r"b\.tar does not exist"):
            loader.fetch("b.tar", path, None, SHA256)
    assert len(server.requests) == 2


def test_without_a_digest_two_equal_copies_prove_a_file(folder: Path, tmp_path: Path) -> None:
    with serving(folder, always={"a.tar": ["wrong_byte", "", "wrong_byte"]}) as server:
        loader, _ = downloader(server.url, tmp_path)
        assert loader.content("a.tar") == CONTENT
        assert len(server.requests) == 4
        server.requests.clear()
        assert loader.content("a.tar") == CONTENT
        assert len(server.requests) == 2


def test_a_file_that_is_never_the_same_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    with serving(folder, shares={"wrong_byte": 1.0}) as server:
        loader, _ = downloader(server.url, tmp_path)
        with pytest.raises(UserError, match=r"a\.tar has sha256 .*every copy another one"):
            loader.content("a.tar")
