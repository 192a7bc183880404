"""The process that writes: what it writes, and what becomes of it and of the file when somebody is killed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from pipeline.checkpoints.file_writer import FileWriter

REPOSITORY = Path(__file__).resolve().parents[3]
NUM_BYTES = 9 << 20  # more than two chunks


def memory_of(content: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content)
    return descriptor


@pytest.fixture
def content() -> bytes:
    return os.urandom(NUM_BYTES)


@pytest.fixture
def writer(content: bytes) -> Iterator[FileWriter]:
    descriptor = memory_of(content)
    writer = FileWriter(descriptor)
    yield writer
    writer.close()
    os.close(descriptor)


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def held_by(path: Path) -> int:
    """A pipe in place of the file: whoever writes to it is in the middle of the file until somebody reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def is_in_mid_write(pipe: int) -> bool:
    try:
        return len(os.read(pipe, 1)) == 1
    except BlockingIOError:
        return False


def is_gone(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_file_is_the_memory_and_the_answer_its_checksum(writer: FileWriter, content: bytes, tmp_path: Path) -> None:
    for name, num_bytes in (("a", NUM_BYTES), ("b", 8), ("c", NUM_BYTES)):
        assert writer.answer(wait=False) is None, "nothing was asked"
        writer.ask("write", path=str(tmp_path / "new" / name), num_bytes=num_bytes, room_bytes=0)
        answer = writer.answer(wait=True)
        assert answer == {"bytes": num_bytes, "xxh3_128": xxhash.xxh3_128(content[:num_bytes]).hexdigest()}
        assert (tmp_path / "new" / name).read_bytes() == content[:num_bytes]


def test_signals_of_a_job_are_the_ranks_matter(writer: FileWriter, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(writer.process_id, number)
    writer.ask("write", path=str(tmp_path / "a"), num_bytes=8, room_bytes=0)
    assert writer.answer(wait=True) is not None
    assert writer.is_alive
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "the rank itself goes on to receive them"


def test_killed_in_mid_write(writer: FileWriter, tmp_path: Path) -> None:
    pipe = held_by(tmp_path / "a")
    writer.ask("write", path=str(tmp_path / "a"), num_bytes=NUM_BYTES, room_bytes=0)
    wait_until(lambda: is_in_mid_write(pipe))
    assert writer.answer(wait=False) is None
    os.kill(writer.process_id, signal.SIGKILL)
    assert writer.answer(wait=True) == {"error": "the process that writes checkpoints has ended (SIGKILL)"}
    assert not writer.is_alive
    writer.ask("write", path=str(tmp_path / "b"), num_bytes=8, room_bytes=0)
    assert "has ended" in (writer.answer(wait=True) or {})["error"], "a request to a dead process is answered, too"
    os.close(pipe)


RANK = """
import os, sys, time
from pipeline.checkpoints.file_writer import FileWriter
memory = os.memfd_create("test")
os.ftruncate(memory, 9 << 20)
writer = FileWriter(memory)
writer.ask("write", path=sys.argv[1], num_bytes=9 << 20, room_bytes=0)
print(writer.process_id, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_rank_in_mid_write(tmp_path: Path) -> None:
    pipe = held_by(tmp_path / "a")
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, str(tmp_path / "a")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert rank.stdout is not None
    process_id = int(rank.stdout.readline())
    wait_until(lambda: is_in_mid_write(pipe))
    rank.kill()
    rank.wait()
    rank.stdout.close()
    wait_until(lambda: is_gone(process_id))
    os.close(pipe)


def test_without_a_signal_from_the_kernel_the_end_of_the_socket_tells(writer: FileWriter, tmp_path: Path) -> None:
    """As where a forked loader process has kept nothing of it open."""
    pipe = held_by(tmp_path / "a")
    writer.ask("write", path=str(tmp_path / "a"), num_bytes=NUM_BYTES, room_bytes=0)
    wait_until(lambda: is_in_mid_write(pipe))
    writer._channel.close()
    os.set_blocking(pipe, True)
    received = 1  # read above
    while chunk := os.read(pipe, 1 << 20):
        received += len(chunk)
    assert received == 4 << 20, "the chunk at hand, and no other"
    wait_until(lambda: not writer.is_alive)
    os.close(pipe)


def test_a_limit_of_file_sizes_is_an_error_that_names_the_file(writer: FileWriter, tmp_path: Path) -> None:
    resource.prlimit(writer.process_id, resource.RLIMIT_FSIZE, (5 << 20, resource.RLIM_INFINITY))
    writer.ask("write", path=str(tmp_path / "a"), num_bytes=NUM_BYTES, room_bytes=0)
    assert writer.answer(wait=True) == {"error": f"{os.strerror(errno.EFBIG)}: {tmp_path / 'a'}"}
    writer.ask("write", path=str(tmp_path / "b"), num_bytes=8, room_bytes=0)
    assert "xxh3_128" in (writer.answer(wait=True) or {}), "the process goes on"
