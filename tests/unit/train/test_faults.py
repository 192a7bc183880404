"""Signals end a measurement at once and leave nothing behind; a run leaves them to its handlers, and sees its time."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.train import module
from pipeline.train.faults import TimeLimit, ended_by_sigterm
from tests.runs import tiny_corpus, write_config


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have this process get a signal in the second forward pass."""
    # A shell has the jobs that it starts in the background ignore it, and all that they start.
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)

    def plant(number: int) -> None:
        loss, calls = module.PretrainModule.loss_sums, iter((False, True))

        def interrupted(*args: Any) -> Any:
            if next(calls, False):
                os.kill(os.getpid(), number)
            return loss(*args)

        monkeypatch.setattr(module.PretrainModule, "loss_sums", interrupted)

    yield plant
    signal.signal(signal.SIGINT, ctrl_c)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_after_the_end_changes_nothing(number: int, tmp_path: Path) -> None:
    """SLURM may send what it meant for the job's start before; all is saved by then."""
    config = write_config(tmp_path, tiny_corpus(tmp_path / "corpus").directory)
    assert main(["train", str(config), "--train.steps", "4", "--schedule.warmup_steps", "1"]) == 0
    os.kill(os.getpid(), number)
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_bench_ends_and_leaves_nothing(
    number: int, signalled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signalled(number)
    command = ["bench", str(write_config(tmp_path, tmp_path / "nowhere")), "--steps", "500"]
    if number == signal.SIGINT:
        assert main(command) == 130
    else:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 128 + signal.SIGTERM
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_ctrl_c_ends_training_with_its_own_status(signalled: Any, tmp_path: Path) -> None:
    tiny_corpus(tmp_path / "corpus")
    handler = signal.getsignal(signal.SIGINT)
    signalled(signal.SIGINT)
    assert main(["train", str(write_config(tmp_path, tmp_path / "corpus"))]) == 130
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_sigterm_meets_what_was_there_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ended_by_sigterm():
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("end_time", "margin_seconds", "now", "near"),
    [
        (1000.0, 120.0, 879.9, False),
        (1000.0, 120.0, 880.0, True),
        (1000.0, 120.0, 2000.0, True),
        (1000.0, 0.0, 2000.0, False),
        (None, 120.0, 2000.0, False),
    ],
)
def test_near_the_end(end_time: float | None, margin_seconds: float, now: float, near: bool) -> None:
    assert TimeLimit(end_time, margin_seconds, now=lambda: now).is_near() is near
