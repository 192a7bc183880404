"""What acts at the end of a step; and the monitor, which counts all steps and waits for the device at logged ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from pipeline.base.logs import get_logger
from pipeline.config.run import MonitorConfig
from pipeline.monitor.meters import memory_gb, own_seconds, slowest_rank, step_rates
from pipeline.monitor.progress import ProgressFile
from pipeline.monitor.sinks import Sink
from pipeline.monitor.step_clock import StepClock


class StepCallback:
    """A feature of the run that acts when an optimizer step is done. Steps count from 1."""

    def on_ranks_met(self, trainer: pl.Trainer, module: Any) -> None:
        """Called on every rank when the ranks have found each other, before the strategy takes the model."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Called on every rank before the first step."""

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        """Called on every rank after step ``step``, in the order of the features."""

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Called on every rank after the last step."""

    def teardown(self, trainer: pl.Trainer, module: Any) -> None:
        """Called in any case, also after an error."""


class StepCallbacks(pl.Callback):
    """All features as one callback: Lightning calls six hooks a micro-batch of every callback that it has."""

    def __init__(self, features: Sequence[StepCallback]) -> None:
        self.features = features

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for feature in self.features:
            feature.on_ranks_met(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for feature in self.features:
            feature.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.finishes_step:
            for feature in self.features:
                feature.on_step_end(trainer, pl_module, pl_module.step + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for feature in self.features:
            feature.on_train_end(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for feature in self.features:
            feature.teardown(trainer, pl_module)


class ProgressCallback(StepCallback):
    """Writes down every step that is done; the first feature of rank 0, so that it is done even if a later one dies.

    A disk that cannot take it costs a warning, not the run.
    """

    def __init__(self, file: ProgressFile) -> None:
        self.file: ProgressFile | None = file

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        if self.file is None:
            return
        try:
            self.file.write(step)
        except OSError as error:
            get_logger("monitor").warning("progress is not written any more: %s", error)
            self.teardown(trainer, module)

    def teardown(self, trainer: pl.Trainer, module: Any) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class MonitorCallback(StepCallback):
    """Logs step 1, every ``log_every_steps``-th, every step that another callback has added metrics to, and the last.

    Args:
        sinks: on rank 0; empty on the others.
        flops: of forward and backward, from what ``module.all_counts`` has counted since the last logged step.
        clock: where the time of this rank goes; other callbacks name their phases on it.
        tokens_before: real tokens of the steps before this start.
    """

    def __init__(
        self,
        config: MonitorConfig,
        sinks: Sequence[Sink],
        *,
        total_steps: int,
        peak_flops_per_device: float | None,
        flops: Callable[..., float],
        clock: StepClock,
        tokens_before: int,
    ) -> None:
        self.config = config
        self.sinks = sinks
        self.total_steps = total_steps
        self.peak_flops_per_device = peak_flops_per_device
        self.flops = flops
        self.clock = clock
        self.tokens_before = tokens_before
        self.added: dict[str, float] = {}
        self._logged_counts: tuple[int, ...] | None = None
        self._steps_to_log = 0

    def add_validation(self, metrics: Mapping[str, float]) -> None:
        """Have what was measured on held-out rows logged with the step at hand."""
        self.added |= {f"validation_{name}": value for name, value in metrics.items()}

    def event(self, name: str, **facts: Any) -> None:
        """Tell the sinks what happened (``checkpoint``, ``stopped``)."""
        for sink in self.sinks:
            sink.event(name, **facts)

    def is_due(self, step: int) -> bool:
        """Whether step ``step`` is logged."""
        return step in (1, self.total_steps) or step % self.config.log_every_steps == 0

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        self._steps_to_log += 1
        if not (self.is_due(step) or self.added or module.is_last_step):
            return
        losses = module.mean_losses()  # waits for the device: the times below are of finished work
        with self.clock.during("logging"):
            metrics = {
                "step": step,
                **losses,
                "lr": module.current_learning_rate(),
                "grad_norm": module.read_gradient_norm(),
                **self._rates(trainer, module),
                "memory_gb": memory_gb(trainer.strategy.root_device.type),
                **self.added,
            }
            if module.budget.seconds is not None:
                metrics["budget_share"] = module.budget.share
            if self.config.batch_digest:
                metrics["batch_digest"] = module.batch_digest()
            self.added = {}
            for sink in self.sinks:
                sink.log(metrics)

    def _rates(self, trainer: pl.Trainer, module: Any) -> dict[str, Any]:
        """Tokens so far, and the rates and times since the last logged step."""
        counts, world_size, num_steps = module.counts, trainer.world_size, self._steps_to_log
        now: tuple[int, ...] = module.all_counts
        local = [new - old for new, old in zip(now, self._logged_counts or (0,) * len(now), strict=True)]
        seconds = self.clock.read()
        # Each rank has a place of its own in the sum, so that one reduction tells all ranks' times.
        microseconds = [0] * world_size
        microseconds[trainer.global_rank] = round(1e6 * own_seconds(seconds) / num_steps)
        tokens, *sums = module.control.sum_integers(counts.real_tokens, *local, *microseconds)
        total, by_rank = sums[: len(local)], sums[len(local) :]
        rates = step_rates(num_steps, total[0], self.flops(*total), seconds, self.peak_flops_per_device, world_size)
        self._logged_counts, self._steps_to_log = now, 0
        return {"tokens": self.tokens_before + tokens, **rates, **slowest_rank([each / 1e6 for each in by_rank])}
