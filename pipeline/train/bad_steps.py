"""Bad steps at work: no weight moves, their documents are named, and after too many in a row the run goes back.

The decision needs the step's loss, summed over the ranks beside the last backward pass, and the gradient norm, which is
the same on all of them. Where it is taken:

=========================  =============================================================================================
CPU                        on the host, which has the numbers
zero1, zero2, zero3        on the host: DeepSpeed reads the norm there anyway, in every step
CUDA, single and ddp       on the device: the kernel of torch's fused AdamW does nothing where ``found_inf`` is 1. The
                           host reads the numbers at logged steps and saves, and catches up with the decisions
the same, otherwise        on the host, which waits for the device in every step: spikes, fp16, other optimizers
=========================  =============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.checkpoints.meta import checkpoint_directory, list_checkpoints
from pipeline.config.run import RunConfig
from pipeline.monitor.callback import MonitorCallback, StepCallback
from pipeline.monitor.events import append_event
from pipeline.objectives.terms import weighted_loss
from pipeline.train.checkpoint import load_checkpoint
from pipeline.train.detector import Detector, Reason
from pipeline.train.replay import replay_batch
from pipeline.train.step_gate import StepGate
from pipeline.train.strategies import ZERO_STAGES, ask_before_step, engine_of


class _Judged(NamedTuple):
    """A step that the device has decided on and the host has not looked at. Tensors of the device, sums with an entry a
    term of the loss."""

    step: int
    counts: tuple[int, ...]
    loss_sums: Tensor
    gradient_norm: Tensor
    own_loss_sums: Tensor


class _Skipped(NamedTuple):
    """A step of which nobody has been told yet."""

    step: int
    reason: Reason
    loss: float
    gradient_norm: float
    own_loss_sums: Tensor


class BadSteps(StepGate, StepCallback):
    """Asked before the optimizer moves; tells of skipped steps and rolls back when a step is done.

    Args:
        detector: decides; as it was after the last step of the start before.
    """

    def __init__(self, config: RunConfig, detector: Detector, monitor: MonitorCallback) -> None:
        self.config = config
        self.detector = detector
        self.monitor = monitor
        self._run_directory = Path(config.run_directory)
        self._module: Any = None
        self._optimizer: Any = None
        self._on_device = False
        self._was_asked = True
        self._refused = False
        self._own_loss_sums = self._loss_sums = torch.zeros(1)
        self._summing: dist.Work | None = None
        self._unread: list[_Judged] = []
        self._untold: list[_Skipped] = []

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._module, self._optimizer = module, trainer.optimizers[0]
        module.gate = self
        self._on_device = decides_on_device(trainer.strategy.root_device, self._optimizer, self.detector)
        if self.config.train.strategy in ZERO_STAGES:
            ask_before_step(engine_of(trainer), self.admits)

    def losses_computed(self, loss_sums: tuple[Tensor, ...]) -> None:
        self._was_asked = self._refused = False
        self._own_loss_sums = self._loss_sums = torch.stack(loss_sums)
        if self.detector.needs_numbers and self._module.plan.world_size > 1:
            self._loss_sums = self._own_loss_sums.clone()
            self._summing = dist.all_reduce(self._loss_sums, async_op=True)

    def admits(self, gradient_norm: Tensor) -> bool:
        self._was_asked = True
        step, counts = self._module.step + 1, self._module.global_counts
        if self._summing is not None:
            self._summing.wait()  # on CUDA only the stream waits
            self._summing = None
        if self._on_device:
            self._decide_on_device(step, gradient_norm)
            self._unread.append(_Judged(step, counts, self._loss_sums, gradient_norm, self._own_loss_sums))
            return True
        if self.detector.needs_numbers:
            self._observe(step, counts, self._loss_sums.tolist(), float(gradient_norm), self._own_loss_sums)
        elif step in self.detector.told:
            self._observe(step, counts, [math.nan] * len(counts), math.nan, self._own_loss_sums)
        return not self._refused

    @property
    def has_refused(self) -> bool:
        return self._refused and not self._on_device

    def _decide_on_device(self, step: int, gradient_norm: Tensor) -> None:
        if step in self.detector.told:
            self._optimizer.found_inf = torch.ones_like(gradient_norm)
        else:
            self._optimizer.found_inf = torch.isfinite(self._loss_sums.sum() + gradient_norm).logical_not().float()

    def _observe(
        self, step: int, counts: Sequence[int], loss_sums: Sequence[float], norm: float, own_loss_sums: Tensor
    ) -> None:
        loss = sum(loss_sums)  # no number, if one is none, even of a term that counts nothing
        if math.isfinite(loss):
            loss = weighted_loss(self._module.loss.terms, loss_sums, counts) or 0.0
        reason = self.detector.observe(step, loss, norm)
        if reason is not None:
            self._refused = True
            self._untold.append(_Skipped(step, reason, loss, norm, own_loss_sums))

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if not self._was_asked:
            # DeepSpeed has found an infinite gradient before it computed the norm.
            self.admits(torch.full((), math.inf))
        if not self._on_device or self.monitor.is_due(step) or module.is_last_step:
            self._catch_up()
            if self.detector.wants_rollback:
                with self.monitor.clock.during("checkpoint"):
                    self._roll_back(trainer, module, step)

    def state(self) -> dict[str, Any]:
        """For the checkpoint of the step at hand; every rank must call it."""
        self._catch_up()
        return self.detector.state()

    def _catch_up(self) -> None:
        """Look at what the device has decided since the last time, and tell of skipped steps; every rank calls it."""
        if self._unread:
            rows = [torch.cat([judged.loss_sums, judged.gradient_norm.view(1)]) for judged in self._unread]
            for judged, (*loss_sums, norm) in zip(self._unread, torch.stack(rows).tolist(), strict=True):
                self._observe(judged.step, judged.counts, loss_sums, norm, judged.own_loss_sums)
            self._unread = []
        if self._untold:
            with self.monitor.clock.during("logging"):
                for skipped in self._untold:
                    self._tell(skipped)
            self._untold = []

    def _tell(self, skipped: _Skipped) -> None:
        own = torch.isfinite(skipped.own_loss_sums).all().cpu()
        finite = [bool(of_rank) for of_rank in self._module.control.gather(own)]
        if not self._module.trainer.is_global_zero:
            return
        facts = {
            "reason": skipped.reason,
            "loss": skipped.loss,
            "grad_norm": skipped.gradient_norm,
            "ranks_with_broken_loss": [rank for rank, is_finite in enumerate(finite) if not is_finite],
        }
        self.monitor.event("step_skipped", step=skipped.step, **facts)
        batch = replay_batch(self.config, skipped.step).facts()
        facts |= {"batch_digest": batch["digest"], "segments": batch["segments"]}
        append_event(self._run_directory, "step_skipped", step=skipped.step, **facts)

    def _roll_back(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        """Go back to the weights of an earlier checkpoint; the step goes on, so what lies in between is skipped.

        Raises:
            UserError: there is no checkpoint to go back to; on every rank.
        """
        module.saves.settle()  # one that is under way may be what to go back to
        in_a_row, every_steps = self.detector.in_a_row, self.config.checkpoint.every_steps
        saved = [saved for saved in list_checkpoints(self._run_directory) if saved % every_steps == 0]
        mine = self.detector.rollback_target(saved, step) or 0
        # Rank 0's answer: another node may see an old listing of the directory.
        (target,) = module.control.sum_integers(mine if trainer.is_global_zero else 0)
        if not target:
            raise UserError(
                f"train.bad_steps.rollback_after: {in_a_row} bad steps in a row up to step {step}, and no checkpoint "
                f"that a rollback could use. {self._run_directory / 'events.jsonl'} names the documents of each. Start "
                "a new run with a lower optimizer.learning_rate or a longer warmup, or without these documents "
                "(data.exclude); if all is as it should be, raise train.bad_steps.spike_factor."
            )
        meta = load_checkpoint(trainer, module, checkpoint_directory(self._run_directory, target))
        self.detector.roll_back(target, step, meta.bad_steps)
        if trainer.is_global_zero:
            facts = {"to_step": target, "skipped_steps": [target + 1, step], "bad_steps_in_a_row": in_a_row}
            append_event(self._run_directory, "rolled_back", step=step, **facts)
            self.monitor.event("rolled_back", step=step, **facts)
            get_logger().warning(
                "%d bad steps in a row: weights and optimizer are those of step %d again, and step %d comes next",
                in_a_row, target, step + 1,
            )  # fmt: skip


def decides_on_device(device: torch.device, optimizer: Any, detector: Detector) -> bool:
    """Whether the decision is left to the optimizer's kernel, so that the host need not wait for the device."""
    return (
        device.type == "cuda"
        and type(optimizer) is torch.optim.AdamW
        and bool(optimizer.defaults["fused"])
        and detector.needs_numbers
        and not detector.looks_for_spikes
    )
