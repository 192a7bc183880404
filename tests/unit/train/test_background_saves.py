"""Saves of one rank, with its real process: what happens when, and what a failure costs."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoints import snapshot
from pipeline.checkpoints.meta import CheckpointMeta, checkpoint_directory, describe, list_checkpoints
from pipeline.checkpoints.pieces import Piece
from pipeline.checkpoints.retention import Retention
from pipeline.checkpoints.verifying import damage_of
from pipeline.train.background_saves import BackgroundSaves, Outcome
from pipeline.train.control import ControlPlane
from tests.unit.checkpoints.test_file_writer import held_by, is_in_mid_write, wait_until

ELEMENTS = 3 << 20
TEMPORARY = ".step-{:08d}.token.tmp"


class Run:
    """The saves of a run of one rank, and what was told of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.told: list[Outcome] = []
        self.values = torch.zeros(ELEMENTS)
        control = ControlPlane(world_size=1, patience_seconds=60)
        retention = Retention(keep_last=2, every_steps=1)
        self.saves = BackgroundSaves(directory, control, 0, retention, "token", self.told.append)

    def begin(self, step: int) -> None:
        self.values.fill_(step)
        meta = CheckpointMeta(step, 0, "single", "fp32", 1, identity={}, facts={})
        self.saves.begin(step, lambda: [Piece("weight/a", (ELEMENTS,), 0, self.values)], describe(meta))
        self.values.fill_(-1)  # training goes on

    def step(self) -> None:
        """What the beginning of a step does."""
        self.saves.agree(*self.saves.news())

    def steps_until_told(self) -> Outcome:
        before = len(self.told)

        def told() -> bool:
            self.step()
            return len(self.told) > before

        wait_until(told)
        return self.told[-1]

    def assert_intact(self, step: int) -> None:
        path = checkpoint_directory(self.directory, step)
        assert damage_of(path) == []
        assert (load_file(path / "rank-00000.safetensors")["weight/a"] == step).all()

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "checkpoints").iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "run")
    yield run
    run.saves.close()


def test_the_loop_goes_on_while_the_file_is_written(run: Run) -> None:
    path = run.directory / "checkpoints" / TEMPORARY.format(1) / "rank-00000.safetensors"
    pipe = held_by(path)
    run.begin(1)
    wait_until(lambda: is_in_mid_write(pipe))
    for _ in range(100):
        run.step()
    assert (run.told, list_checkpoints(run.directory)) == ([], [])
    os.close(pipe)  # a broken pipe
    assert "Broken pipe" in str(run.steps_until_told().error)


def test_each_step_is_published_as_it_was_and_old_ones_go(run: Run) -> None:
    for step in (1, 2, 3):
        run.begin(step)
        outcome = run.steps_until_told()
        assert (outcome.step, outcome.error, outcome.warning) == (step, None, None)
        assert 0 < outcome.stall_seconds < outcome.seconds
        run.assert_intact(step)
        assert run.saves.settle() is None
    assert run.told[-1].deleted == [1]
    assert run.files() == ["latest", "step-00000002", "step-00000003"]
    meta = json.loads((checkpoint_directory(run.directory, 3) / "meta.json").read_text())
    assert (meta["format_version"], meta["step"], list(meta["files"])) == (2, 3, ["rank-00000.safetensors"])


def test_settling_waits_and_counts_as_stall(run: Run) -> None:
    run.begin(1)
    assert run.saves.settle() is None
    (outcome,) = run.told
    assert outcome.stall_seconds == pytest.approx(outcome.seconds, abs=1.0)
    run.assert_intact(1)


def test_two_saves_at_once_are_a_mistake_of_the_caller(run: Run) -> None:
    run.begin(1)
    with pytest.raises(AssertionError):
        run.begin(2)
    assert run.saves.settle() is None
    run.begin(2)
    assert run.saves.settle() is None
    run.assert_intact(2)


def test_a_killed_process_costs_its_save_and_the_next_one_has_another(run: Run) -> None:
    run.begin(1)
    assert run.saves.settle() is None
    pipe = held_by(run.directory / "checkpoints" / TEMPORARY.format(2) / "rank-00000.safetensors")
    run.begin(2)
    wait_until(lambda: is_in_mid_write(pipe))
    assert run.saves._writer is not None
    os.kill(run.saves._writer.process_id, signal.SIGKILL)
    outcome = run.steps_until_told()
    assert outcome.error == "rank 0: the process that writes checkpoints has ended (SIGKILL)"
    assert run.saves.settle() == outcome.error
    assert run.files() == ["latest", "step-00000001"], "nothing is left of it"
    run.assert_intact(1)
    run.begin(3)
    assert run.saves.settle() is None
    run.assert_intact(3)
    os.close(pipe)


def test_a_process_killed_between_saves_is_replaced(run: Run) -> None:
    for step in (1, 2):
        run.begin(step)
        assert run.saves.settle() is None
        assert run.saves._writer is not None
        os.kill(run.saves._writer.process_id, signal.SIGKILL)
        wait_until(lambda: run.saves._writer is not None and not run.saves._writer.is_alive)
    run.assert_intact(2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A disk for the checkpoints of one state and a half; calling it makes room for more."""
    mount = tmp_path / "run" / "checkpoints"
    mount.mkdir(parents=True)
    size = 4 * ELEMENTS * 3 // 2
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    yield lambda: subprocess.run(["mount", "-o", f"remount,size={3 * size}", str(mount)], check=True) and None
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_costs_that_save(run: Run, small_disk: Callable[[], None]) -> None:
    run.begin(1)
    assert run.saves.settle() is None
    for step in (2, 3):
        run.begin(step)
        outcome = run.steps_until_told()
        assert outcome.error is not None
        assert outcome.error.startswith(f"rank 0: {os.strerror(errno.ENOSPC)}: {run.directory}")
        assert run.files() == ["latest", "step-00000001"], "the part that was written is gone"
        run.assert_intact(1)
    small_disk()
    run.begin(4)
    assert run.saves.settle() is None
    run.assert_intact(4)


def test_a_disk_that_fills_up_in_the_middle_of_a_file(
    run: Run, small_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was room at first, which others have taken."""
    run.begin(1)
    assert run.saves.settle() is None
    monkeypatch.setattr(run.saves.control, "world_size", 0)  # no room is asked for
    run.begin(2)
    assert run.saves._writer is not None
    wait_until(lambda: run.saves.news() != (0, 0))
    assert run.saves.news() == (0, 1)
    monkeypatch.undo()
    assert str(run.saves.settle()).startswith(f"rank 0: {os.strerror(errno.ENOSPC)}: {run.directory}")
    assert run.files() == ["latest", "step-00000001"], "the part that was written is gone"
    small_disk()
    run.begin(3)
    assert run.saves.settle() is None
    run.assert_intact(3)


def test_a_disk_that_is_full_after_the_files_is_a_failure_too(run: Run, small_disk: Callable[[], None]) -> None:
    """Room for the file of the rank to the byte, none for the description."""
    del small_disk
    disk = os.statvfs(run.directory / "checkpoints")
    free = disk.f_bavail * disk.f_frsize
    run.begin(1)
    assert run.saves._snapshot is not None
    rest = free - run.saves._snapshot.num_bytes
    # Whole pages less one for each: of the file, of the directories and of the filler, which is one byte too long.
    (run.directory / "checkpoints" / "filler").write_bytes(b"x" * (rest // 4096 * 4096))
    error = run.saves.settle()
    assert error is not None
    assert "No space left on device" in error
    assert list_checkpoints(run.directory) == []


def test_no_memory_for_the_snapshot_costs_that_save(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(snapshot.os, "ftruncate", refuse)
        run.begin(1)
    assert run.steps_until_told().error == "rank 0: no snapshot was made (Cannot allocate memory)"
    run.begin(2)
    assert run.saves.settle() is None
    run.assert_intact(2)


def test_what_cannot_be_tidied_is_a_warning(run: Run) -> None:
    (run.directory / "checkpoints" / "latest").mkdir(parents=True)
    run.begin(1)
    outcome = run.steps_until_told()
    assert outcome.error is None
    assert "Is a directory" in str(outcome.warning)
    run.assert_intact(1)
