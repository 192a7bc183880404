"""The monitor's callback: what its rates leave out."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from pipeline.config.run import MonitorConfig
from pipeline.monitor.callback import MonitorCallback
from pipeline.monitor.step_clock import PHASES, StepClock
from pipeline.train.module import BatchCounts


class Lines:
    """A sink that keeps its lines and takes a while."""

    def __init__(self, now: list[float]) -> None:
        self.now = now
        self.lines: list[Any] = []

    def start(self, *_: Any) -> None: ...

    def log(self, metrics: Any) -> None:
        self.now[0] += 3.0
        self.lines.append(dict(metrics))

    def event(self, name: str, **facts: Any) -> None: ...

    def close(self) -> None: ...


def monitor_at(now: list[float]) -> tuple[MonitorCallback, Lines]:
    sink = Lines(now)
    monitor = MonitorCallback(
        MonitorConfig(log_every_steps=4, batch_digest=False),
        [sink],
        total_steps=8,
        peak_flops_per_device=10.0,
        flops=lambda *counts: sum(counts),
        clock=StepClock(lambda: now[0]),
        tokens_before=1000,
    )
    return monitor, sink


def module_after(tokens: int) -> Any:
    return types.SimpleNamespace(
        counts=BatchCounts(real_tokens=tokens),
        all_counts=(*BatchCounts(real_tokens=tokens), *BatchCounts()),
        control=types.SimpleNamespace(sum_integers=lambda *values: list(values)),
        mean_losses=lambda: {"loss": 2.0},
        current_learning_rate=lambda: 0.1,
        is_last_step=False,
        budget=types.SimpleNamespace(seconds=None),
        read_gradient_norm=lambda: None,
    )


def test_lines_hold_the_rates_since_the_line_before() -> None:
    now = [50.0]
    monitor, sink = monitor_at(now)
    trainer: Any = types.SimpleNamespace(
        world_size=1, global_rank=0, strategy=types.SimpleNamespace(root_device=torch.device("cpu"))
    )
    now[0] += 20.0  # before the first step: nobody's
    monitor.clock.read()
    for step in range(1, 9):
        with monitor.clock.during("forward"):
            now[0] += 2.0
        if step == 3:
            with monitor.clock.during("checkpoint"):
                now[0] += 40.0
        monitor.on_step_end(trainer, module_after(100 * step), step)
    first, fourth, eighth = sink.lines
    assert [line["step"] for line in sink.lines] == [1, 4, 8]
    assert [line["tokens"] for line in sink.lines] == [1100, 1400, 1800]
    assert (first["seconds_per_step"], first["time_forward"], first["time_logging"]) == (2.0, 2.0, 0.0)
    # Three seconds of the sink, three steps, and a checkpoint that the rates leave out but the split does not.
    assert fourth["seconds_per_step"] == pytest.approx((3 * 2 + 3) / 3)
    assert fourth["tokens_per_second"] == pytest.approx(300 / 9)
    assert fourth["mfu"] == pytest.approx(300 / 9 / 10)
    assert (fourth["time_logging"], fourth["time_checkpoint"]) == (1.0, pytest.approx(40 / 3))
    assert sum(eighth[f"time_{phase}"] for phase in PHASES) * 4 == pytest.approx(4 * 2 + 3)
