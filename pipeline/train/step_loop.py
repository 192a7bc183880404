"""The loop over micro-batches: Lightning's, without what this project has no use for.

Lightning's own loop asks some 25 hooks a micro-batch of every callback, the module and the strategy by their names, and
keeps what was logged through it, for as much time as a plain PyTorch step of a small model takes. This one makes the
same calls of the strategy in the same order, and through it of the precision plugin, DDP and DeepSpeed; of the module
and the callbacks it calls the hooks that they have. It has no validation, no schedulers and no ``self.log``.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch import Tensor


class StepLoop(_TrainingEpochLoop):
    """One pass over the loader, which ends with the last step of the run."""

    def run(self, data_fetcher: Any) -> None:
        self.reset()
        self.on_run_start(data_fetcher)
        trainer: Any = self.trainer
        number = 0
        while not trainer.should_stop:
            try:
                batch, _, _ = next(data_fetcher)
            except StopIteration:
                break
            self._train(trainer, batch, number)
            number += 1

    def _train(self, trainer: Any, batch: Any, number: int) -> None:
        """Forward and backward of micro-batch ``number`` and, where a step ends with it, the optimizer."""
        module: Any = trainer.lightning_module
        strategy = trainer.strategy
        batch = module.on_before_batch_transfer(batch, 0)
        batch = module.transfer_batch_to_device(batch, strategy.root_device, 0)
        optimizer: Any = trainer.optimizers[0]

        def closure() -> Tensor:
            loss: Any = strategy.training_step(batch, number)
            if trainer.accumulate_grad_batches > 1:
                loss = loss / trainer.accumulate_grad_batches  # as Lightning's
            if module.starts_step:
                module.on_before_zero_grad(optimizer)
                module.optimizer_zero_grad(0, number, optimizer)
            strategy.backward(loss, optimizer)
            return loss

        if module.finishes_step or strategy.handles_gradient_accumulation:
            strategy.optimizer_step(optimizer, closure, module)
            module.clock.enter("other")
        else:
            with _block_parallel_sync_behavior(strategy):
                closure()
        for callback in trainer.callbacks:
            callback.on_train_batch_end(trainer, module, None, batch, number)
        module.on_train_batch_end(None, batch, number)


def use_step_loop(trainer: pl.Trainer) -> None:
    """Have a trainer that has not begun train with :class:`StepLoop`."""
    old = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = StepLoop(trainer, min_steps=old.min_steps, max_steps=old.max_steps)
