"""Several processes on one cache: one download a file, the bound, kill -9, a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.remote import RemoteFiles
from tests.corpora import Corpus
from tests.remote_corpora import cached_bytes, check_equal, quick_settings, small_corpus, wanted_tars
from tests.servers import HostileServer, serving

REPOSITORY = Path(__file__).resolve().parents[2]
READER = """
import hashlib, json, sys
from tests.remote_corpora import quick_settings
from pathlib import Path
from pipeline.shards.remote import RemoteFiles
url, cache, wanted, settings, ahead = json.loads(sys.argv[1])
files = RemoteFiles(url, quick_settings(Path(cache), **settings))
print("ready", flush=True)
sys.stdin.readline()
if ahead:
    files.fetch_ahead([tuple(one) for one in wanted])
for name, num_bytes, sha256 in wanted:
    with files.open(name, num_bytes, sha256) as file:
        assert hashlib.sha256(file.read()).hexdigest() == sha256, name
"""
Wanted = Sequence[tuple[str, int, str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus") / "corpus", num_shards=6, num_documents=200)


def reader(url: str, cache: Path, wanted: Wanted, ahead: bool = False, **settings: Any) -> subprocess.Popen[str]:
    """A process that reads these files through the cache, once it is told to."""
    arguments = json.dumps([url, str(cache), list(wanted), settings, ahead])
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", READER, arguments], cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def start(*processes: subprocess.Popen[str]) -> None:
    """Let them go at the same time."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.proof)])
def test_processes_fetch_every_shard_once_between_them(corpus: Corpus, tmp_path: Path, num_processes: int) -> None:
    wanted = wanted_tars(corpus)
    with serving(corpus.directory, always={name: ["error503"] for name, _, _ in wanted[:2]}) as server:
        cache = tmp_path / "cache"
        processes = [reader(server.url, cache, wanted, ahead=number % 2 == 1) for number in range(num_processes)]
        start(*processes)
        finish(*processes)
        assert server.count(".tar") == len(wanted) + 2
        check_equal(RemoteFiles(server.url, quick_settings(cache)), corpus, ["train"])
        assert server.count(".tar") == len(wanted) + 2


def test_the_bound_holds_while_processes_read_in_different_orders(corpus: Corpus, tmp_path: Path) -> None:
    wanted = wanted_tars(corpus)
    bound = 3 * max(num_bytes for _, num_bytes, _ in wanted)
    with serving(corpus.directory) as server:
        orders = [random.Random(seed).sample(wanted, len(wanted)) * 2 for seed in range(3)]
        cache = tmp_path / "cache"
        processes = [reader(server.url, cache, order, ahead=True, max_bytes=bound) for order in orders]
        start(*processes)
        most = 0
        while any(process.poll() is None for process in processes):
            most = max(most, cached_bytes(cache))
        finish(*processes)
    assert bound / 2 < most <= bound + 100
    assert server.count(".tar") > len(wanted)


@pytest.mark.proof
def test_processes_that_want_different_files_of_a_cache_for_one_all_come_through(
    corpus: Corpus, tmp_path: Path
) -> None:
    wanted = wanted_tars(corpus)
    bound = max(num_bytes for _, num_bytes, _ in wanted) + 1000
    with serving(corpus.directory) as server:
        processes = [reader(server.url, tmp_path, [one] * 3, True, max_bytes=bound) for one in wanted[:3]]
        start(*processes)
        finish(*processes)
    assert cached_bytes(tmp_path) <= bound


@pytest.fixture
def large_file(tmp_path: Path) -> Iterator[tuple[HostileServer, tuple[str, int, str]]]:
    """A file of several requests."""
    content = np.random.default_rng(0).integers(0, 256, 20 << 20, np.uint8).tobytes()
    (tmp_path / "served" / "train").mkdir(parents=True)
    (tmp_path / "served" / "train" / "00000.tar").write_bytes(content)
    with serving(tmp_path / "served", stall_seconds=30.0) as server:
        yield server, ("train/00000.tar", len(content), hashlib.sha256(content).hexdigest())


def test_a_killed_download_is_gone_on_with(
    large_file: tuple[HostileServer, tuple[str, int, str]], tmp_path: Path
) -> None:
    server, one = large_file
    server.always["train/00000.tar"] = ["", "stall"]
    killed = reader(server.url, tmp_path / "cache", [one], stall_seconds=60.0)
    waiting = reader(server.url, tmp_path / "cache", [one])
    start(killed)
    while len(server.requests) < 2:
        time.sleep(0.01)
    start(waiting)  # waits for the first, then takes over
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    finish(waiting)
    assert [asked for _, asked in server.requests] == [
        "bytes=0-8388607", "bytes=8388608-16777215", "bytes=8388608-16777215", "bytes=16777216-20971519",
    ]  # fmt: skip


@pytest.mark.proof
def test_twenty_kills_lose_nothing(corpus: Corpus, tmp_path: Path) -> None:
    generator = random.Random(0)
    cache, wanted = tmp_path / "cache", wanted_tars(corpus)
    bound = 3 * max(num_bytes for _, num_bytes, _ in wanted)
    num_broken = 0
    shares = {"error503": 0.1, "truncate": 0.1, "stall": 0.2, "wrong_byte": 0.05}
    with serving(corpus.directory, shares=shares, stall_seconds=0.2) as server:
        for attempt in range(20):
            process = reader(server.url, cache, wanted, ahead=attempt % 2 == 0, max_bytes=bound)
            last_request = len(server.requests) + generator.randrange(1, 8)
            start(process)
            while process.poll() is None and len(server.requests) < last_request:
                time.sleep(0.001)
            process.kill()
            process.communicate()
            for path in cache.rglob("*.tar.*"):
                if path.name.endswith(".partial"):
                    num_broken += 1
                else:
                    found = hashlib.sha256(path.read_bytes()).hexdigest()
                    assert path.name.endswith(found[:16])
        assert num_broken > 0
        server.shares.clear()
        check_equal(RemoteFiles(server.url, quick_settings(cache)), corpus)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, as large as about three shards."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_evicts_and_goes_on(corpus: Corpus, small_disk: Path) -> None:
    wanted = wanted_tars(corpus)
    assert sum(num_bytes for _, num_bytes, _ in wanted) > 700_000
    with serving(corpus.directory) as server:
        check_equal(RemoteFiles(server.url, quick_settings(small_disk / "cache")), corpus)
        orders = [wanted, wanted[::-1]]
        processes = [reader(server.url, small_disk / "cache", order * 2, ahead=True) for order in orders]
        start(*processes)
        finish(*processes)


def test_a_disk_filled_by_others_says_what_to_do_and_loses_nothing(corpus: Corpus, small_disk: Path) -> None:
    with serving(corpus.directory) as server:
        files = RemoteFiles(server.url, quick_settings(small_disk / "cache", retry_seconds=1.0))
        one = wanted_tars(corpus)[0]
        (small_disk / "others").write_bytes(bytes(450_000))
        with pytest.raises(UserError, match=r"disk of the cache .* is full .*data\.cache\.directory"):
            files.open(*one)
        (small_disk / "others").unlink()
        with files.open(*one) as file:
            assert hashlib.sha256(file.read()).hexdigest() == one[2]
