"""Steps that a loss scale skips are counted and told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.train.loss_scaling import LossScaling


class Monitor:
    """What the callback asks of the monitor: every second step is logged."""

    def __init__(self) -> None:
        self.added: dict[str, float] = {}

    def is_due(self, step: int) -> bool:
        return step % 2 == 0


def module_of(strategy: str, has_refused: bool = False) -> Any:
    train = SimpleNamespace(strategy=strategy)
    return SimpleNamespace(
        config=SimpleNamespace(train=train), first_step=10, gate=SimpleNamespace(has_refused=has_refused)
    )


def test_skipped_steps_of_a_grad_scaler(caplog: pytest.LogCaptureFixture) -> None:
    """A real scaler, on the CPU: steps 11 to 14, of which 12 and 13 have an infinite gradient."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer: Any = SimpleNamespace(
        optimizers=[optimizer], precision_plugin=SimpleNamespace(scaler=scaler), is_global_zero=True
    )
    monitor: Any = Monitor()
    callback = LossScaling(monitor)
    callback.on_train_start(trainer, module_of("ddp"))
    logged = []
    for step, factor in enumerate((1.0, float("inf"), float("inf"), 1.0), start=11):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        callback.on_step_end(trainer, module_of("ddp"), step)
        logged.append(monitor.added)
        monitor.added = {}
    assert logged == [
        {},
        {"loss_scale": 512.0, "skipped_steps": 1},
        {},
        {"loss_scale": 256.0, "skipped_steps": 2},
    ]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("step 12 changed no weight: its gradients did not fit fp16; the loss scale is now 512")


def test_skipped_steps_of_deepspeed_are_those_of_this_start() -> None:
    """A checkpoint has brought five, and the first step is skipped."""
    engine = SimpleNamespace(skipped_steps=6, optimizer=SimpleNamespace(loss_scale=32768, overflow=True))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=engine), is_global_zero=False)
    monitor: Any = Monitor()
    callback = LossScaling(monitor)
    callback.on_train_start(trainer, module_of("zero2"))
    callback.on_step_end(trainer, module_of("zero2"), 11)
    assert monitor.added == {}
    engine.optimizer.overflow = False
    callback.on_step_end(trainer, module_of("zero2"), 12)
    assert monitor.added == {"loss_scale": 32768.0, "skipped_steps": 1}
    engine.skipped_steps, engine.optimizer.overflow = 7, True
    callback.on_step_end(trainer, module_of("zero2", has_refused=True), 13)
    callback.on_step_end(trainer, module_of("zero2"), 14)
    assert monitor.added["skipped_steps"] == 1, "a bad step is not the scale's"
