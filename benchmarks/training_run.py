"""A training run of some minutes: loss curve, and the shares of time that data and checkpoints take.

The same figures as any run's: they are read from its `metrics.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from benchmarks.our_training import OurStep, trained_run
from benchmarks.record import Goal, Result, Table, significant
from benchmarks.workload import Workload
from pipeline.config.run import CheckpointConfig, MonitorConfig, RunConfig, ScheduleConfig
from pipeline.monitor.step_clock import PHASES

_CURVE_POINTS: Final = 20
_LOGGED_LINES: Final = 200
_CHECKPOINTS: Final = 3
"""In the run, the last one included: at intervals of about the default on a fast GPU."""


@dataclass(frozen=True)
class TrainingRun:
    """What a run showed."""

    results: list[Result]
    tables: dict[str, Table]


def measure_run(workload: Workload, minutes: float, compiled: bool) -> TrainingRun:
    """Train for about so many minutes; the number of steps is taken from the speed of a few.

    Raises:
        AssertionError: the loss did not fall.
    """
    num_steps = _steps_for(workload, minutes * 60, compiled)
    lines, events = trained_run(config_of_run(workload, num_steps, compiled), num_steps)
    first, last = lines[0]["loss"], lines[-1]["loss"]
    assert math.isfinite(last), f"the loss became {last}"
    assert last < first, f"the loss did not fall: {first} at the start, {last} at the end"
    saves = [event["stall_seconds"] for event in events if event["event"] == "checkpoint"]
    shares = phase_shares(lines, saves[-1])
    results = [
        Result("data_wait_share", "% of time", "lower", 100 * shares["data_wait"], goal=Goal(ours=0.5)),
        Result("checkpoint_stall_share", "% of time", "lower", 100 * shares["checkpoint"], goal=Goal(ours=0.5)),
    ]
    return TrainingRun(results, {"training_run": _curve(lines), "training_run_time": _time(shares)})


def config_of_run(workload: Workload, num_steps: int, compiled: bool) -> RunConfig:
    """Defaults where they matter: checkpoints, logs every ten steps or so, a warmup and a decay."""
    config = workload.config(compile=compiled)
    return replace(
        config,
        optimizer=replace(config.optimizer, learning_rate=1e-3 if workload.shape.hidden_size < 512 else 4e-4),
        schedule=ScheduleConfig(name="linear", warmup_steps=num_steps // 10),
        checkpoint=CheckpointConfig(every_steps=max(1, num_steps // _CHECKPOINTS)),
        monitor=MonitorConfig(wandb="off", log_every_steps=max(1, num_steps // _LOGGED_LINES)),
    )


def phase_shares(lines: Sequence[Mapping[str, Any]], last_save_seconds: float) -> dict[str, float]:
    """Share of every phase in the time after the first step, in which graphs are compiled.

    Args:
        last_save_seconds: of the save after the last step, which comes after the last line and stands in none.
    """
    seconds = dict.fromkeys(PHASES, 0.0)
    for before, line in pairwise(lines):
        for phase in PHASES:
            seconds[phase] += line[f"time_{phase}"] * (line["step"] - before["step"])
    seconds["checkpoint"] += last_save_seconds
    total = sum(seconds.values())
    return {phase: spent / total for phase, spent in seconds.items()}


def _steps_for(workload: Workload, seconds: float, compiled: bool) -> int:
    step = OurStep(workload.config(compile=compiled))
    try:
        seconds_a_step = step.seconds_a_step(10, warmup_steps=5)
    finally:
        step.close()
    return max(20, int(seconds / seconds_a_step))


def _curve(lines: Sequence[Mapping[str, Any]]) -> Table:
    every = -(-len(lines) // _CURVE_POINTS)
    chosen = [*lines[::every], *([] if (len(lines) - 1) % every == 0 else [lines[-1]])]
    rows = [[line["step"], line["tokens"], significant(line["loss"]), _speed(line)] for line in chosen]
    return Table(["step", "real tokens so far", "loss", "real tokens/s"], rows)


def _speed(line: Mapping[str, Any]) -> float:
    return significant(line["tokens_per_second"])


def _time(shares: Mapping[str, float]) -> Table:
    ordered = sorted(shares.items(), key=lambda share: -share[1])
    return Table(["phase", "% of time"], [[phase, significant(100 * share, 3)] for phase, share in ordered])
