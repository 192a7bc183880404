"""Held-out loss during training: the same rows and masks at every evaluation, for any number of ranks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline.config.run import EvaluationConfig
from pipeline.evaluate.heldout import HeldOutLoss
from pipeline.monitor.callback import MonitorCallback, StepCallback
from pipeline.objectives.batch import Batch
from pipeline.objectives.loss import PackedLoss
from pipeline.train.module import PretrainModule


class Validation(StepCallback):
    """Evaluates every ``evaluation.every_steps`` steps (0: never in between) and after the last step.

    Args:
        batches_of: this rank's micro-batches at a step (counted from 0). All ranks hold equally many, since ZeRO-3
            gathers weights in every forward; filler rows predict nothing.
    """

    def __init__(
        self,
        batches_of: Callable[[int], Sequence[Batch]],
        config: EvaluationConfig,
        monitor: MonitorCallback,
    ) -> None:
        self.batches_of = batches_of
        self.every_steps = config.every_steps
        self.monitor = monitor

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        due = module.is_last_step or (self.every_steps > 0 and step % self.every_steps == 0)
        if not due:
            return
        with self.monitor.clock.during("validation"):
            batches = self.batches_of(step - 1)
            if batches:
                self.monitor.add_validation(held_out_metrics(trainer, module, batches))


def held_out_metrics(trainer: pl.Trainer, module: PretrainModule, batches: Sequence[Batch]) -> dict[str, float]:
    """Loss, its terms, perplexity and accuracies over all ranks' batches, by the names of their metrics; in a mixture
    those of every objective, each over its own batches.

    Raises:
        UserError: the validation rows have nothing to predict.
    """
    found = []
    for number, loss in enumerate(module.loss.tasks):
        own = [batch for batch in batches if batch.task == number]
        found.append(_metrics_of_task(trainer, module, loss, own))
    return module.loss.held_out(found)


def _metrics_of_task(
    trainer: pl.Trainer, module: PretrainModule, loss: PackedLoss, batches: Sequence[Batch]
) -> dict[str, float]:
    control = module.control
    assert control is not None
    device = trainer.strategy.root_device
    was_training = module.training
    module.eval()
    terms, shares = loss.terms, loss.shares
    sums, counts = torch.zeros(len(terms), dtype=torch.float64, device=device), [0] * len(terms)
    held = torch.zeros(len(shares), 2, dtype=torch.float64, device=device)
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        for batch in batches:
            found, found_shares = loss.measured(module.model, batch.to(device))
            sums += torch.stack(found).double()
            own = (getattr(batch, f"num_{term.counts}") for term in terms)
            counts = list(map(operator.add, counts, own))
            if shares:
                held += torch.stack(found_shares).double()
    module.train(was_training)
    total = HeldOutLoss(terms, shares)
    total.add(sums.tolist(), counts, held.tolist())  # the one wait for the device
    return total.result(lambda mine: control.sum_floats(*mine)).metrics()
