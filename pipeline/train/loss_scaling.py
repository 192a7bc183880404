"""fp16: the scale of the loss, and the steps that were skipped because their gradients did not fit fp16."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from pipeline.base.logs import get_logger
from pipeline.monitor.callback import MonitorCallback, StepCallback
from pipeline.train.strategies import ZERO_STAGES, engine_of


def read_loss_scale(trainer: pl.Trainer, module: Any) -> dict[str, float]:
    """The scale and the steps since it was changed, alike for torch's and DeepSpeed's scaler; nothing without fp16."""
    train = module.config.train
    if train.precision != "fp16":
        return {}
    if train.strategy in ZERO_STAGES:
        scaler = engine_of(trainer).optimizer.loss_scaler
        return {"scale": float(scaler.cur_scale), "good_steps": scaler.cur_iter - scaler.last_overflow_iter - 1}
    state = trainer.precision_plugin.state_dict()
    return {"scale": float(state["scale"]), "good_steps": state["_growth_tracker"]}


def restore_loss_scale(trainer: pl.Trainer, module: Any, saved: dict[str, float]) -> None:
    """Go on from what :func:`read_loss_scale` gave, under this strategy or another."""
    if not saved:
        return
    if module.config.train.strategy in ZERO_STAGES:
        scaler = engine_of(trainer).optimizer.loss_scaler
        scaler.cur_scale = saved["scale"]
        scaler.last_overflow_iter = scaler.cur_iter - 1 - int(saved["good_steps"])
        return
    plugin: Any = trainer.precision_plugin
    # DeepSpeed counts on where torch begins again, and doubles the scale sooner.
    good_steps = min(int(saved["good_steps"]), plugin.scaler.get_growth_interval() - 1)
    plugin.load_state_dict({**plugin.state_dict(), "scale": saved["scale"], "_growth_tracker": good_steps})


class LossScaling(StepCallback):
    """Logs ``loss_scale`` and ``skipped_steps`` (of this start), and says when steps are skipped.

    The scale begins at 2^16, is halved by a step with an infinite gradient, which changes no weight, and doubled after
    a long stretch without one (Micikevicius et al. 2018, "Mixed precision training", section 3.2).
    """

    def __init__(self, monitor: MonitorCallback) -> None:
        self.monitor = monitor
        self.num_updates = 0
        self._num_bad_steps = 0
        self._skipped_told = 0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if module.config.train.strategy not in ZERO_STAGES:
            trainer.optimizers[0].register_step_post_hook(self._count_update)  # the scaler calls no step that it skips

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if module.config.train.strategy in ZERO_STAGES:
            engine = engine_of(trainer)
            self._num_bad_steps += module.gate.has_refused  # a bad step goes DeepSpeed's way of an overflow
            skipped, scale = engine.skipped_steps - self._num_bad_steps, engine.optimizer.loss_scale
        else:
            skipped = step - module.first_step - self.num_updates
            scale = trainer.precision_plugin.scaler.get_scale()  # type: ignore[attr-defined]  # of fp16's plugin
        if skipped > self._skipped_told:
            self._skipped_told = skipped
            if trainer.is_global_zero:
                get_logger().warning(
                    "step %d changed no weight: its gradients did not fit fp16; the loss scale is now %g "
                    "(%d steps skipped so far)", step, scale, skipped,
                )  # fmt: skip
        if self.monitor.is_due(step):
            self.monitor.added |= {"loss_scale": float(scale), "skipped_steps": skipped}

    def _count_update(self, *_: Any) -> None:
        self.num_updates += 1
