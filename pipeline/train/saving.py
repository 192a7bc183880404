"""When the run is saved and when it stops: both only at a step's end, all ranks alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.base.slurm import job_end_time
from pipeline.config.run import CheckpointConfig
from pipeline.monitor.callback import MonitorCallback, StepCallback
from pipeline.monitor.events import append_event
from pipeline.train.budget import TimeBudget
from pipeline.train.checkpoint import (
    CheckpointMeta,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from pipeline.train.control import join_ranks
from pipeline.train.faults import StopSignals, TimeLimit
from pipeline.train.start_up import StartUpClock


class Lifecycle(StepCallback):
    """Brings the ranks together at the start; saves at intervals, when the run is to stop, and at the end.

    Args:
        resume_from: checkpoint whose optimizer state is restored before the first step.
        make_meta: (step, real tokens of this start, time of the whole run) -> what the checkpoint says of itself.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        run_directory: Path,
        *,
        resume_from: Path | None,
        make_meta: Callable[[int, int, TimeBudget], CheckpointMeta],
        monitor: MonitorCallback,
        signals: StopSignals,
        start_up: StartUpClock,
    ) -> None:
        self.config = config
        self.run_directory = run_directory
        self.resume_from = resume_from
        self.make_meta = make_meta
        self.monitor = monitor
        self.signals = signals
        self.start_up = start_up
        self.time_limit = TimeLimit(job_end_time(), config.seconds_before_time_limit)
        self.stopped_at: int | None = None

    def on_ranks_met(self, trainer: pl.Trainer, module: Any) -> None:
        self.start_up.enter("strategy")

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.start_up.enter("rendezvous")
        join_ranks(trainer, module)
        module.stop_requested = self.stop_requested if trainer.is_global_zero else self.signals.requested
        self.signals.install()
        _check_same_step(module)
        self.start_up.enter("load")
        if self.resume_from is not None:
            load_checkpoint(trainer, module, self.resume_from)
        if trainer.is_global_zero:
            append_event(self.run_directory, "training", step=module.step, start_up_seconds=self.start_up.read())

    def stop_requested(self) -> bool:
        """On rank 0, whose clock counts for all: whether the run is to stop after the step that begins now."""
        return self.signals.requested() or self.time_limit.is_near()

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        last = module.is_last_step
        if not (last or module.stop_agreed or step % self.config.every_steps == 0):
            return
        with self.monitor.clock.during("checkpoint"):
            self._save(trainer, module, step)
        if last and module.budget.is_spent:
            trainer.should_stop = True
            if trainer.is_global_zero:
                self._tell("budget_spent", step, hours=round(module.budget.agreed_seconds / 3600, 3))
        if module.stop_agreed and not last:
            self.stopped_at = step
            trainer.should_stop = True
            if trainer.is_global_zero:
                at_time_limit = self.signals.received is None and self.time_limit.is_near()
                self._tell("stopped", step, signal=self.signals.received, at_time_limit=at_time_limit)
                limit = f"{self.config.seconds_before_time_limit:g} s before the end of the job's time"
                why = f"{limit} (checkpoint.seconds_before_time_limit)" if at_time_limit else "on a signal"
                get_logger().info("stopped after step %d %s; run the same command to go on", step, why)

    def _save(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        started = time.perf_counter()
        (tokens,) = module.control.sum_integers(module.counts.real_tokens)
        path = save_checkpoint(trainer, module, self.run_directory, self.make_meta(step, tokens, module.budget))
        if trainer.is_global_zero:
            self._tell("checkpoint", step, path=path.name, seconds=round(time.perf_counter() - started, 3))
            prune_checkpoints(self.run_directory, self.config.keep_last, self.config.every_steps)

    def _tell(self, name: str, step: int, **facts: Any) -> None:
        """Note an event in the run directory, on the console and in wandb; rank 0 only."""
        append_event(self.run_directory, name, step=step, **facts)
        self.monitor.event(name, step=step, **facts)

    def teardown(self, trainer: pl.Trainer, module: Any) -> None:
        self.signals.restore()


def _check_same_step(module: Any) -> None:
    """Each rank has looked for the newest checkpoint by itself: they must have found the same.

    Raises:
        UserError: they have not; on every rank.
    """
    steps = [int(step) for step in module.control.gather(torch.tensor([module.first_step]))]
    if len(set(steps)) > 1:
        raise UserError(
            f"run_directory: the ranks see different checkpoints (newest steps {sorted(set(steps))}, 0 for none): it "
            "must be one directory that all nodes share. If it is, a node saw an old listing of it: start again."
        )
