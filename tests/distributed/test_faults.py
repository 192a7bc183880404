"""Ranks that stop, die or cannot read: the others notice, torchrun starts all again, and the run ends as it would."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.loader import _Steps
from pipeline.launch.torchrun import ranks_environment, run_forwarding_signals
from pipeline.monitor.events import read_events
from pipeline.monitor.goodput import goodput_of
from pipeline.monitor.json_lines import read_records
from pipeline.monitor.sinks import SUPERSEDED_NAME
from tests.faulty_rank import command_with_faults, fault_environment
from tests.rankpool import RankError, RankPool
from tests.runs import column, run_rank, tiny_corpus, weights_of, write_config

TIMEOUTS = ["--train.hang_timeout_seconds", "10", "--train.slow_timeout_seconds", "200"]


def run_with_faults(
    directory: Path, strategy: str, faults: list[str], capfd: pytest.CaptureFixture[str], *more: str
) -> tuple[Path, str]:
    """A run under torchrun that comes to its end in spite of ``faults``; its directory and its log."""
    config = write_config(directory, tiny_corpus(directory / "corpus").directory)
    overrides = ["--train.strategy", strategy, *TIMEOUTS, *more]
    command = command_with_faults(config, overrides, max_restarts=len(faults))
    status = run_forwarding_signals(command, ranks_environment(fault_environment(directory, faults), 2, 2), 2)
    log = capfd.readouterr().err
    assert status == 0, log
    return config.with_suffix(""), log


def assert_undisturbed(run: Path, strategy: str, rank_pool: RankPool, *more: str) -> None:
    """The run is that of ranks to which nothing happened, to the bit."""
    expected = run.parent / "undisturbed"
    config = run.with_suffix(".yaml")
    rank_pool.run(run_rank, str(config), ["--train.strategy", strategy, "--run_directory", str(expected), *more])
    for name in ("step", "loss", "grad_norm", "batch_digest"):
        assert column(run, name) == column(expected, name), name
    weights, reference = (weights_of(path, 20) for path in (run, expected))
    assert all((weights[name] == reference[name]).all() for name in reference)


@pytest.mark.proof
@pytest.mark.parametrize("strategy", ["zero1"])
def test_a_stopped_rank_is_noticed(
    strategy: str, rank_pool: RankPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, log = run_with_faults(tmp_path, strategy, ["SIGSTOP:1:8"], capfd)
    assert "error: rank 0 has not come on for 1" in log
    place = "(step 8, phase `communication`, in the collective `sum of integers`)"
    assert place in log
    stacks = (run / "stacks/rank-00000.txt").read_text()
    for written in (log, stacks):
        assert "in sum_integers" in written, "the stack of the loop"
        assert "in _produce" in written, "the stack of the loader's thread"
    assert place in stacks
    (hung,) = [event for event in read_events(run) if event["event"] == "hung"]
    assert (hung["rank"], hung["step"], hung["phase"]) == (0, 7, "communication")
    assert_undisturbed(run, strategy, rank_pool)


@pytest.mark.proof
@pytest.mark.parametrize("strategy", ["ddp"])
def test_a_rank_that_cannot_read_ends_all_and_its_error_comes_first(
    strategy: str, rank_pool: RankPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, log = run_with_faults(tmp_path, strategy, ["disk:1:8"], capfd)
    errors = [line for line in log.splitlines() if " error: rank " in line]
    assert "[rank 1] error: rank 1 has failed (" in errors[0]
    assert "phase `data_wait`): OSError: [Errno 5] Input/output error: 'train/00000.tar'" in errors[0]
    assert "error: rank 0 has lost another rank (" in errors[1]
    first_error = log.index(" error: ", log.index(errors[0]))
    assert first_error == min(log.index(word) for word in (" error: ", "Traceback", "Current thread"))
    assert [(event["event"], event["rank"]) for event in read_events(run) if "error" in event] == [
        ("failed", 1),
        ("lost_rank", 0),
    ]
    assert "OSError: [Errno 5]" in (run / "stacks/rank-00001.txt").read_text()
    assert_undisturbed(run, strategy, rank_pool)


@pytest.mark.proof
@pytest.mark.parametrize("strategy", ["ddp"])
def test_goodput_knows_what_three_kills_have_cost(
    strategy: str, rank_pool: RankPool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Checkpoints at 5, 10 and 15; in the metrics are the first, every third and every validated step, so that they
    # alone would not tell the redo.
    faults, every_third = ["SIGKILL:0:9", "SIGKILL:1:12", "SIGKILL:0:20"], ["--monitor.log_every_steps", "3"]
    run, _ = run_with_faults(tmp_path, strategy, faults, capfd, *every_third)
    computed = [int(step) for step in (tmp_path / "steps_done").read_text().split()]
    redone = Counter(computed) - Counter(range(1, 21))
    # More where a save was still under way at the kill.
    assert redone >= Counter([6, 7, 8, 11, 16, 17, 18, 19])
    told = goodput_of(run)
    assert told["redone_steps"] == redone.total()
    assert (told["starts"], told["steps"]) == (4, 20)
    assert sum(told["lost_seconds"].values()) + told["productive_seconds"] == pytest.approx(told["wall_seconds"])
    assert told["lost_seconds"]["redo"] > 0
    assert told["lost_seconds"]["start_up"] > told["productive_seconds"], "of 20 steps of some milliseconds"
    superseded = Counter(record["step"] for record in read_records(run / SUPERSEDED_NAME))
    assert superseded == Counter(step for step in redone.elements() if step == 1 or step % 3 == 0 or step % 10 == 0)
    assert_undisturbed(run, strategy, rank_pool, *every_third)


@pytest.mark.proof
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_rank_killed_in_the_middle_of_its_file_leaves_the_older_checkpoint(
    strategy: str,
    rank_pool: RankPool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The save of step 10 is still under way at step 13, since a process stands still in the file of rank 1."""
    monkeypatch.setenv("HELD_SAVE", "1:10")
    run, log = run_with_faults(tmp_path, strategy, ["SIGKILL:1:13"], capfd)
    events = [(event["event"], event["step"]) for event in read_events(run)]
    news = [event for event in events if event[0] in ("started", "resumed", "checkpoint", "checkpoint_damaged")]
    later = [("checkpoint", step) for step in (10, 15, 20)]
    assert news == [("started", 0), ("checkpoint", 5), ("resumed", 5), *later], log
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["latest", *(f"step-{step:08d}" for step in (5, 10, 15, 20))], "the part of the file is gone"
    monkeypatch.delenv("HELD_SAVE")
    assert_undisturbed(run, strategy, rank_pool)


def _cannot_read(config_path: str, overrides: list[str], failing_rank: str) -> None:
    """Train; the disk of one rank fails."""

    def made(self: Any, steps: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == failing_rank:
            patch.setattr(_Steps, "_made", made)
        run_rank(config_path, overrides)


def test_a_failing_disk_ends_all_ranks(rank_pool: RankPool, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_corpus(tmp_path / "corpus").directory)
    with pytest.raises(RankError) as raised:
        rank_pool.run(_cannot_read, str(config), ["--train.strategy", "ddp"], "1", timeout_seconds=60)
    assert raised.value.rank == 1
    assert "OSError: [Errno 5] Input/output error" in str(raised.value)
    events = {event["event"]: event for event in read_events(tmp_path / "run")}
    assert (events["failed"]["rank"], events["failed"]["error"]) == (1, "OSError: [Errno 5] Input/output error")
    assert "in _produce" in (tmp_path / "run/stacks/rank-00001.txt").read_text()
