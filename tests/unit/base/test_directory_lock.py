"""One job at a time in a directory: processes of this machine, jobs of others, and SLURM's requeue."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.base.directory_lock import DirectoryLock, Holder, refuse_if_held, verdict
from pipeline.base.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from pipeline.base.directory_lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1]), "run_directory"):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = {"space": "another machine", "host": "node7", "process": 4711, "job": "12"}
MINE = Holder.this_process(10.0)


def hold_in_a_process(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leave_lock(directory: Path, number: int = 1, **facts: object) -> Path:
    """What another process has left."""
    directory.mkdir(exist_ok=True)
    path = directory / f".lock-{number:08d}"
    path.write_text(json.dumps({**asdict(MINE), **facts}))
    return path


def test_the_second_process_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    first = hold_in_a_process(tmp_path / "run")
    try:
        told = rf"run_directory: .*run is in use by process {first.pid} on host {platform.node()}, since 20.*: wait"
        with pytest.raises(UserError, match=told), DirectoryLock(tmp_path / "run", "run_directory"):
            pass
        with pytest.raises(UserError, match=told):
            refuse_if_held(tmp_path / "run", "run_directory")
    finally:
        first.kill()
        first.wait()
    refuse_if_held(tmp_path / "run", "run_directory")
    with DirectoryLock(tmp_path / "run", "run_directory") as lock:
        assert lock.number == 2, "a killed holder's lock is free at once"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock-00000002"]


def test_a_process_that_waits_to_be_waited_for_holds_nothing(tmp_path: Path) -> None:
    first = hold_in_a_process(tmp_path)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    with DirectoryLock(tmp_path, "run_directory"):  # while the first is still in the process table
        pass
    first.wait()


def test_a_released_directory_is_free(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with DirectoryLock(tmp_path, "run_directory") as lock:
            assert lock.number == number
            with pytest.raises(UserError, match="is in use by"), DirectoryLock(tmp_path, "run_directory"):
                pass


def test_verdicts() -> None:
    mine, other = MINE, replace(MINE, space="another machine", job="12")
    ticks = {mine.process: mine.ticks}.get
    assert verdict(mine, mine, ticks) == "held"
    assert verdict(replace(mine, released=True), mine, ticks) == "free"
    assert verdict(replace(mine, ticks=mine.ticks + 1), mine, ticks) == "free", "its number came again"
    assert verdict(other, mine, ticks) == "unsure"
    assert verdict(replace(other, released=True), mine, ticks) == "free"
    # SLURM has started this job again, so what it was before is gone, wherever that was.
    assert verdict(other, replace(mine, job="12", restarts=1), ticks) == "free"
    assert verdict(other, replace(mine, job="13", restarts=1), ticks) == "unsure"
    assert verdict(other, replace(mine, job="12"), ticks) == "unsure", "another step of the same job"
    assert verdict(replace(other, restarts=2), replace(mine, job="12", restarts=1), ticks) == "unsure"


def test_the_same_job_after_a_requeue_goes_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_lock(tmp_path, **ELSEWHERE, silence_seconds=1e9)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with DirectoryLock(tmp_path, "run_directory") as lock:
        assert (lock.me.job, lock.me.restarts) == ("12", 1)


def test_a_job_elsewhere_that_beats_is_refused(tmp_path: Path) -> None:
    path = leave_lock(tmp_path, **ELSEWHERE, silence_seconds=60.0)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        told = "in use by process 4711 on host node7, SLURM job 12, since"
        with pytest.raises(UserError, match=told), DirectoryLock(tmp_path, "run_directory"):
            pass
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("content", [None, "", '{"host": "no'])
def test_a_job_elsewhere_that_is_silent_is_dead(tmp_path: Path, content: str | None) -> None:
    path = leave_lock(tmp_path, **ELSEWHERE, silence_seconds=60.0)
    if content is not None:
        path.write_text(content)  # killed while it wrote
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    with DirectoryLock(tmp_path, "run_directory", silence_seconds=60.0) as lock:
        assert lock.number == 2


def test_silence_is_measured_by_the_clock_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_lock(tmp_path, **ELSEWHERE, silence_seconds=1.0)
    # Clocks of two machines, hours apart in either direction: the lock is neither old at once nor young for ever.
    monkeypatch.setattr(time, "time", lambda: 0.0)
    began = time.monotonic()
    with DirectoryLock(tmp_path, "run_directory"):
        assert time.monotonic() - began >= 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock-00000002"], "no probe is left"


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    leave_lock(tmp_path, number=7, ticks=1)
    barrier, taken, refused = threading.Barrier(8), [], []

    def take() -> None:
        lock = DirectoryLock(tmp_path, "run_directory")
        barrier.wait()
        try:
            with lock:
                taken.append(lock.number)
                barrier.wait()  # until all others are refused
        except UserError:
            refused.append(1)
            barrier.wait()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (taken, len(refused)) == ([8], 7)


def test_a_holder_that_was_overtaken_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = threading.Event()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        left.set()

    with DirectoryLock(tmp_path, "run_directory", silence_seconds=0.4, leave=leave) as lock:
        before = os.fstat(lock._file).st_mtime_ns
        while os.fstat(lock._file).st_mtime_ns == before:
            time.sleep(0.01)
        assert not left.is_set()
        leave_lock(tmp_path, lock.number + 1, **ELSEWHERE)
        assert left.wait(10)
    assert statuses == [1]
    assert "has been taken over (process 4711 on host node7, SLURM job 12, since" in caplog.text


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run_directory: .*file/run cannot be written \(Not a directory\)"):
        DirectoryLock(tmp_path / "file/run", "run_directory").__enter__()
