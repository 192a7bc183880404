"""The monitor's callback: what its rates leave out."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from pipeline.config.run import MonitorConfig
from pipeline.monitor import callback
from pipeline.monitor.callback import MonitorCallback


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_unfinished_steps_are_not_taken_for_validation(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    waited_for = []

    def synchronize(which: torch.device) -> None:
        waited_for.append(str(which))
        clock[0] += 5  # what the device still had to do

    monkeypatch.setattr(callback.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monitor = MonitorCallback(
        MonitorConfig(),
        [],
        total_steps=10,
        peak_flops_per_device=None,
        flops=lambda *_: 0.0,
        data_wait_seconds=lambda: 0.0,
        tokens_before=0,
    )
    trainer: Any = types.SimpleNamespace(world_size=1, strategy=types.SimpleNamespace(root_device=torch.device(device)))
    monitor.on_train_start(trainer, None)
    with monitor.no_training(trainer):
        clock[0] += 2
    assert monitor.meter is not None
    assert monitor.meter.excluded_seconds == 2
    assert waited_for == ([] if device == "cpu" else [device])
