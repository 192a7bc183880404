"""Trials follow from their seeds; the parts of a restart add up to it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults_restart import SPLIT, split_of
from benchmarks.faults_trial import MOMENTS, SIGNALS, Stuck, draw, started


def test_a_trial_follows_from_its_seed() -> None:
    assert draw(17) == draw(17)
    trials = [draw(seed) for seed in range(200)]
    assert Counter(trial.strategy for trial in trials) == {"ddp": 100, "zero1": 100}
    blows = [blow for trial in trials for blow in trial.blows]
    assert {(blow.signal, blow.moment) for blow in blows} == {(one, other) for one in SIGNALS for other in MOMENTS}
    assert {blow.target for blow in blows} == {"rank 0", "rank 1", "torchrun", "launcher"}
    assert all(("1" in trial.overrides[-1]) == any(b.moment == "loader" for b in trial.blows) for trial in trials)


def test_the_parts_of_a_restart_add_up() -> None:
    def at(seconds: float) -> str:
        return f"2026-01-01T00:00:{seconds:06.3f}+00:00"

    phases = {"import": 3.0, "data": 0.25, "lock": 0.0, "load": 0.5, "model": 1.0, "rendezvous": 1.5, "strategy": 0.25}
    events = [
        {"event": "started", "step": 0, "began": at(1.0)},
        {"event": "training", "step": 0, "start_up_seconds": {"import": 9.0}},
        {"event": "resumed", "step": 5, "began": at(22.0)},
        {"event": "training", "step": 5, "start_up_seconds": phases},
    ]
    metrics = [{"step": 5, "time": at(19.0)}, {"step": 6, "time": at(30.0), "time_data_wait": 0.5}]
    killed = 1767225600.0 + 20.0
    parts = split_of(events, metrics, killed)
    assert parts["total"] == pytest.approx(10.0)
    assert sum(parts[part] for part in SPLIT) == pytest.approx(10.0)
    assert parts["launcher"] == pytest.approx(2.0)
    assert parts["data"] == pytest.approx(0.75)
    assert parts["model"] == pytest.approx(1.25)
    assert parts["first step (compile)"] == pytest.approx(1.0)


@pytest.mark.parametrize(("program", "is_stuck"), [("print('.', flush=True)", False), ("0", True)])
def test_who_does_something_is_not_stuck_however_long_it_takes(program: str, is_stuck: bool, tmp_path: Path) -> None:
    with started(tmp_path / "run.yaml", [], limit_seconds=1.5) as starter:
        starter.command = [sys.executable, "-c", f"import time\nfor _ in range(9): {program}; time.sleep(0.5)"]
        starter.start()
        if is_stuck:
            with pytest.raises(Stuck, match=r"the command has neither ended nor done anything for 1\.5 s"):
                starter.wait()
        else:
            assert starter.wait() == 0
