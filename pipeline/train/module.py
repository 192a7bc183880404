"""The one LightningModule: a stock Hugging Face model, an objective, and the arithmetic of a step.

Letters: W ranks, N micro-batches of a rank in a step.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from pipeline.base.keyed import key
from pipeline.config.derived import BatchPlan
from pipeline.config.run import RunConfig
from pipeline.config.stages import schedule_in_steps
from pipeline.data.digest import combine_row_digests
from pipeline.models.mup import mup_scales
from pipeline.monitor.step_clock import StepClock
from pipeline.objectives.batch import Batch
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.mixture_loss import MixtureLoss
from pipeline.optim.build import make_optimizer
from pipeline.optim.schedules import learning_rate
from pipeline.train.budget import TimeBudget
from pipeline.train.control import ControlPlane
from pipeline.train.saves import Saves
from pipeline.train.step_gate import StepGate
from pipeline.train.step_timing import time_gradient_reduction
from pipeline.train.strategies import ZERO_STAGES, engine_of

_DROPOUT_STREAM = 0xD0  # keeps dropout's keys apart from those of masks and order


class BatchCounts(NamedTuple):
    """What this rank has trained on since the run was started: host integers, what `flops_per_step` counts."""

    real_tokens: int = 0
    sum_squared_lengths: int = 0
    predictions: int = 0
    sum_prediction_lengths: int = 0
    pairs: int = 0
    token_pairs_in_window: int = 0
    encoder_tokens: int = 0
    sum_squared_encoder_lengths: int = 0
    sum_cross_products: int = 0

    def plus(self, batch: Batch) -> BatchCounts:
        return BatchCounts(
            self.real_tokens + batch.num_real_tokens,
            self.sum_squared_lengths + batch.sum_squared_lengths,
            self.predictions + batch.num_predictions,
            self.sum_prediction_lengths + batch.sum_prediction_lengths,
            self.pairs + batch.num_pairs,
            self.token_pairs_in_window + batch.token_pairs_in_window,
            self.encoder_tokens + batch.num_encoder_tokens,
            self.sum_squared_encoder_lengths + batch.sum_squared_encoder_lengths,
            self.sum_cross_products + batch.sum_cross_products,
        )


class PretrainModule(pl.LightningModule):
    """Trains ``model`` on batches that an objective has prepared.

    The step that is being computed is ``self.step`` (0 before the first). State is the weights, the optimizer and this
    number; dropout is keyed by (seed, step, first row of the micro-batch), so nothing else needs saving.
    """

    def __init__(
        self,
        model: Any,
        loss: PackedLoss | MixtureLoss,
        config: RunConfig,
        plan: BatchPlan,
        first_step: int,
        spent_seconds: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.config = config
        self.plan = plan
        self.schedule = schedule_in_steps(config)
        self.first_step = first_step
        self.step = first_step
        self.budget = TimeBudget(config.schedule.budget_hours, spent_seconds)
        self.clock = StepClock()
        self.control: ControlPlane | None = None
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stop_agreed = False
        self.gate = StepGate()
        self.saves = Saves()
        self.global_counts = (0,) * len(loss.terms)
        self.local_loss_sums: tuple[Tensor, ...] | None = None
        self.gradient_norm: Tensor | None = None
        self.micro_batch = -1
        self.counts = BatchCounts()
        self.taught_counts = BatchCounts()
        self.task = 0
        self.row_digests: list[tuple[Tensor, Tensor]] = []
        self._dropout_key = 0
        self.keeps_gradients = False

    def __setattr__(self, name: str, value: Any) -> None:
        # torch looks for parameters, buffers and modules behind every attribute, which a step sets some 20 of.
        if isinstance(value, nn.Module) or type(value) is nn.Parameter:  # isinstance is slow for a parameter
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    @property
    def all_counts(self) -> tuple[int, ...]:
        """What FLOPs are counted from: ``counts``, then the same of the steps that had a teacher."""
        return (*self.counts, *self.taught_counts)

    def loss_sums(self, batch: Batch) -> tuple[Tensor, ...]:
        """The sum of every term of the loss over the micro-batch, fp32 scalars with a graph."""
        return self.loss.sums(self.model, batch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.micro_batch = (self.micro_batch + 1) % self.plan.accumulation
        if self.micro_batch == 0:
            self._begin_step(batch)
        # Counts are read here, on the host: reading them later would wait for the device.
        self.counts = self.counts.plus(batch)
        if self.loss.has_teacher(batch.task):
            self.taught_counts = self.taught_counts.plus(batch)
        if batch.row_digests is not None:
            self.row_digests.append((batch.row_numbers, batch.row_digests))
        self._dropout_key = key(self.config.seed, _DROPOUT_STREAM, self.step, batch.first_slot_key)
        return batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def _begin_step(self, batch: Batch) -> None:
        assert self.control is not None
        self.clock.enter("communication")
        milliseconds = self.budget.elapsed_milliseconds() if self.trainer.is_global_zero else 0
        stops, milliseconds, refusals, *others = self.control.sum_integers(
            int(self.stop_requested()),
            milliseconds,
            int(self.gate.has_refused),
            *batch.window_counts(self.loss.terms),
            *self.saves.news(),
        )
        counts, saves = others[: len(self.loss.terms)], others[len(self.loss.terms) :]
        if refusals not in (0, self.plan.world_size):
            raise RuntimeError(
                f"step {self.step} was skipped by {refusals} of {self.plan.world_size} ranks: their losses or gradient "
                "norms differ, and so do their weights by now"
            )
        self.budget.agree(milliseconds)
        self.clock.enter("other")
        self.saves.agree(*saves)
        self.global_counts = tuple(counts)
        self.task = batch.task
        self.stop_agreed = stops > 0
        self.local_loss_sums = None
        self.row_digests.clear()
        rate = self.current_learning_rate()
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["lr_scale"]

    def on_train_start(self) -> None:  # after the callbacks' hooks of the same name
        time_gradient_reduction(self.trainer.strategy.model, self.clock)
        self.budget.start()
        self.clock.read()  # what came before, such as restoring a checkpoint, is no step

    @property
    def is_last_step(self) -> bool:
        """Whether the run ends with the step at hand: it has all its steps, or has spent its time."""
        return self.step + 1 == self.config.train.steps or self.budget.is_spent

    @property
    def starts_step(self) -> bool:
        """Whether the micro-batch at hand is the first of its step."""
        return self.micro_batch == 0

    @property
    def finishes_step(self) -> bool:
        """Whether the micro-batch at hand is the last of its step."""
        return self.micro_batch == self.plan.accumulation - 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.finishes_step:  # after the callbacks' hooks of the same name
            self.step += 1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.clock.enter("forward")
        # Not torch.manual_seed: it seeds every kind of device, and without CUDA it notes the whole stack each time.
        torch.default_generator.manual_seed(self._dropout_key)
        if batch.input_ids.is_cuda:
            torch.cuda.manual_seed(self._dropout_key)
        sums = self.loss_sums(batch)
        before, detached = self.local_loss_sums, tuple(term.detach() for term in sums)
        self.local_loss_sums = detached if before is None else tuple(map(operator.add, before, detached))
        if self.finishes_step:
            self.gate.losses_computed(self.local_loss_sums)
        # The gradient of the means over the global batch, whatever W and N (see strategies.py).
        scale = self.plan.world_size * self.plan.accumulation
        first, *others = (
            term_sum * (term.weight * scale / max(count, 1))
            for term, term_sum, count in zip(self.loss.terms, sums, self.global_counts, strict=True)
        )
        return sum(others, start=first)

    # Phases of the clock, in the order of Lightning's calls.

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if not self.keeps_gradients:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)
            return
        # A parameter without a gradient takes over the first that it is given, and a CUDA graph's is memory which the
        # next micro-batch writes again: so gradients are zeroed and added to, never replaced.
        optimizer.zero_grad(set_to_none=False)
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.clock.enter("optimizer")

    def on_before_backward(self, loss: Tensor) -> None:
        self.clock.enter("backward")

    def on_after_backward(self) -> None:
        self.clock.enter("optimizer" if self.finishes_step else "other")  # clipping and the step come next

    def current_learning_rate(self) -> float:
        """Learning rate of ``self.step``, a pure function of it and of the share of a time budget."""
        train = self.config.train
        return learning_rate(self.step, self.schedule, self.config.optimizer, train.steps, self.budget.share)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # With fp16 Lightning unscales gradients only for optimizers that are not fused; clipping needs them unscaled.
        train = self.config.train
        fused = False if train.precision == "fp16" and train.strategy not in ZERO_STAGES else None
        mup = self.config.model.mup_base_width is not None
        return make_optimizer(
            self.model, self.config.optimizer, fused, mup_scales(self.model, self.config.model) if mup else None
        )

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # DeepSpeed clips by itself; elsewhere clip here, to keep the norm without computing it twice.
        if self.config.train.strategy not in ZERO_STAGES:
            limit = self.config.train.gradient_clip_norm or float("inf")
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(self._parameters_to_clip, limit)
            if not self.gate.admits(self.gradient_norm):
                optimizer.zero_grad(set_to_none=True)  # optimizers pass over parameters without a gradient

    @cached_property
    def _parameters_to_clip(self) -> list[nn.Parameter]:
        return list(self.model.parameters())  # walking through all modules takes as long as clipping

    def read_gradient_norm(self) -> float | None:
        """Global norm before clipping of the step just finished; waits for the device."""
        if self.config.train.strategy not in ZERO_STAGES:
            norm = self.gradient_norm
        else:
            norm = engine_of(self.trainer).get_global_grad_norm()
        return None if norm is None else float(norm)

    def mean_losses(self) -> dict[str, float | None]:
        """Loss of the step just finished, over the global batch, and its terms where there are several, by the names of
        their metrics; None where nothing was predicted. Waits for the device."""
        assert self.control is not None
        assert self.local_loss_sums is not None
        mine = [float(term) for term in self.local_loss_sums]
        with self.clock.during("communication"):  # the wait for slower ranks
            sums = self.control.sum_floats(*mine)
        return self.loss.metrics(sums, self.global_counts, self.task)

    def batch_digest(self) -> str | None:
        """Digest of the step's global batch, if its rows were digested; every rank must call it."""
        assert self.control is not None
        if not self.row_digests:
            return None
        numbers = torch.cat([numbers for numbers, _ in self.row_digests]).cpu()  # (rows_per_rank,)
        digests = torch.cat([digests for _, digests in self.row_digests]).cpu()  # (rows_per_rank, 32)
        return combine_row_digests(
            torch.cat(self.control.gather(numbers)).numpy(), torch.cat(self.control.gather(digests)).numpy()
        )


# Lightning looks at the signature before every micro-batch; a stored one need not be worked out again.
vars(PretrainModule)["training_step"].__signature__ = inspect.signature(PretrainModule.training_step)
