"""The one Lightning callback of the monitor: it counts every step and waits for the device only at logged ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline.config.run import MonitorConfig
from pipeline.monitor.meters import ThroughputMeter, memory_gb, perplexity
from pipeline.monitor.sinks import Sink


class StepCallback(pl.Callback):
    """A feature of the run that acts when an optimizer step is done. Steps count from 1."""

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        """Called on every rank after step ``step``, in the order of the trainer's callbacks."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.finishes_step:
            self.on_step_end(trainer, module, module.step + 1)


class MonitorCallback(StepCallback):
    """Logs step 1, every ``log_every_steps``-th, every step that another callback has added metrics to, and the last.

    Args:
        sinks: on rank 0; empty on the others.
        flops: (real tokens, sum of squared segment lengths, predictions) -> FLOPs of forward and backward.
        data_wait_seconds: cumulative time this rank has waited for batches.
        tokens_before: real tokens of the steps before this start.
    """

    def __init__(
        self,
        config: MonitorConfig,
        sinks: Sequence[Sink],
        *,
        total_steps: int,
        peak_flops_per_device: float | None,
        flops: Callable[[int, int, int], float],
        data_wait_seconds: Callable[[], float],
        tokens_before: int,
    ) -> None:
        self.config = config
        self.sinks = sinks
        self.total_steps = total_steps
        self.peak_flops_per_device = peak_flops_per_device
        self.flops = flops
        self.data_wait_seconds = data_wait_seconds
        self.tokens_before = tokens_before
        self.meter: ThroughputMeter | None = None
        self.added: dict[str, float] = {}
        self._logged_counts = (0, 0, 0)
        self._logged_wait = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.meter = ThroughputMeter(trainer.world_size, self.peak_flops_per_device, time.perf_counter())
        self._logged_wait = self.data_wait_seconds()

    def add_validation(self, loss: float) -> None:
        """Have the held-out loss logged with the step at hand."""
        self.added |= {"validation_loss": loss, "validation_perplexity": perplexity(loss)}

    def event(self, name: str, **facts: Any) -> None:
        """Tell the sinks what happened (``checkpoint``, ``stopped``)."""
        for sink in self.sinks:
            sink.event(name, **facts)

    @contextmanager
    def no_training(self, trainer: pl.Trainer) -> Iterator[None]:
        """Around validations and checkpoints: their time is left out of the rates.

        Steps that the device has not finished are waited for first, or their time would be left out too.
        """
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        yield
        assert self.meter is not None
        self.meter.exclude(time.perf_counter() - started)

    def is_due(self, step: int) -> bool:
        """Whether step ``step`` is logged."""
        return step in (1, self.total_steps) or step % self.config.log_every_steps == 0

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        assert self.meter is not None
        self.meter.add(0, 0.0, 0.0)
        if not (self.is_due(step) or self.added):
            return
        loss = module.mean_loss()  # waits for the device: the times below are of finished work
        now = time.perf_counter()
        counts = module.counts
        now_counts = (counts.real_tokens, counts.sum_squared_lengths, counts.predictions)
        local = [new - old for new, old in zip(now_counts, self._logged_counts, strict=True)]
        total = module.control.sum_integers(*local, counts.real_tokens)
        wait = self.data_wait_seconds()
        self.meter.num_tokens += total[0]
        self.meter.flops += self.flops(*total[:3])
        self.meter.data_wait_seconds += wait - self._logged_wait
        self._logged_counts, self._logged_wait = now_counts, wait
        metrics: dict[str, Any] = {
            "step": step,
            "loss": loss,
            "lr": module.current_learning_rate(),
            "grad_norm": module.read_gradient_norm(),
            "tokens": self.tokens_before + total[3],
            **self.meter.read(now),
            "memory_gb": memory_gb(trainer.strategy.root_device.type),
            **self.added,
        }
        if self.config.batch_digest:
            metrics["batch_digest"] = module.batch_digest()
        self.added = {}
        for sink in self.sinks:
            sink.log(metrics)
