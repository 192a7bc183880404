"""Steps that a loss scale skips are counted and told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.train.loss_scaling import LossScaling, read_loss_scale, restore_loss_scale


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
    """Its count begins at every start; the first step is skipped."""
    engine = SimpleNamespace(skipped_steps=1, optimizer=SimpleNamespace(loss_scale=32768, overflow=True))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=engine), is_global_zero=False)
    monitor: Any = Monitor()
    callback = LossScaling(monitor)
    callback.on_train_start(trainer, module_of("zero2"))
    callback.on_step_end(trainer, module_of("zero2"), 11)
    assert monitor.added == {}
    engine.optimizer.overflow = False
    callback.on_step_end(trainer, module_of("zero2"), 12)
    assert monitor.added == {"loss_scale": 32768.0, "skipped_steps": 1}
    engine.skipped_steps, engine.optimizer.overflow = 2, True
    callback.on_step_end(trainer, module_of("zero2", has_refused=True), 13)
    callback.on_step_end(trainer, module_of("zero2"), 14)
    assert monitor.added["skipped_steps"] == 1, "a bad step is not the scale's"


class Scalers:
    """A trainer with torch's scaler, and one with DeepSpeed's, that double the scale after as many good steps."""

    def __init__(self) -> None:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
        from lightning.pytorch.plugins.precision import MixedPrecision

        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4))
        self.torch_scaler = plugin.scaler
        self.deepspeed_scaler = DynamicLossScaler(1024.0, 4, 1.0, 1, False)
        engine = SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=self.deepspeed_scaler))
        self.plain: tuple[Any, Any] = SimpleNamespace(precision_plugin=plugin), fp16_module("ddp")
        self.zero: tuple[Any, Any] = SimpleNamespace(strategy=SimpleNamespace(model=engine)), fp16_module("zero2")
        self._weight = torch.nn.Parameter(torch.ones(2))
        self._optimizer = torch.optim.SGD([self._weight], lr=0.0)

    def step(self, overflow: bool) -> None:
        self._optimizer.zero_grad()
        self.torch_scaler.scale((self._weight * (float("inf") if overflow else 1.0)).sum()).backward()
        self.torch_scaler.step(self._optimizer)
        self.torch_scaler.update()
        self.deepspeed_scaler.update_scale(overflow)

    def scales(self) -> tuple[float, float]:
        return self.torch_scaler.get_scale(), self.deepspeed_scaler.cur_scale


def fp16_module(strategy: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(strategy=strategy, precision="fp16")))


@pytest.mark.parametrize("saved_by", ["plain", "zero"])
def test_a_scale_goes_on_under_another_strategy(saved_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two good steps after an infinite one are saved; two more double torch's scale, three DeepSpeed's (its way)."""
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)  # it is asked which rank may log
    before, after = Scalers(), Scalers()
    for overflow in (False, True, False, False):
        before.step(overflow)
    saved = read_loss_scale(*getattr(before, saved_by))
    assert saved == {"scale": 512.0, "good_steps": 2}
    for trainer, module in (after.plain, after.zero):
        restore_loss_scale(trainer, module, saved)
    found = []
    for _ in range(3):
        after.step(overflow=False)
        found.append(after.scales())
        before.step(overflow=False)
        assert before.scales() == found[-1]
    assert found == [(512.0, 512.0), (1024.0, 512.0), (1024.0, 1024.0)]


def test_no_scale_is_saved_or_restored_without_fp16() -> None:
    module = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(strategy="zero1", precision="bf16")))
    trainer: Any = None
    assert read_loss_scale(trainer, module) == {}
    restore_loss_scale(trainer, module, {})


def test_steps_that_only_deepspeed_counts_on_fit_torchs_scaler() -> None:
    after = Scalers()
    restore_loss_scale(*after.plain, {"scale": 8.0, "good_steps": 1000})
    after.step(overflow=False)
    assert after.torch_scaler.get_scale() == 16.0
