"""When the run is saved and when it stops: both only at a step's end, all ranks alike."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.base.slurm import job_end_time
from pipeline.checkpoints.directory import remove_leftovers
from pipeline.checkpoints.meta import CheckpointMeta, describe
from pipeline.checkpoints.retention import Retention
from pipeline.config.run import CheckpointConfig
from pipeline.monitor.callback import MonitorCallback, StepCallback
from pipeline.monitor.events import append_event
from pipeline.train.background_saves import BackgroundSaves, Outcome
from pipeline.train.budget import TimeBudget
from pipeline.train.checkpoint import load_checkpoint
from pipeline.train.control import join_ranks
from pipeline.train.faults import StopSignals, TimeLimit
from pipeline.train.loss_scaling import read_loss_scale
from pipeline.train.rank_state import rank_pieces
from pipeline.train.start_up import StartUpClock

_TOKEN_BITS = 48


class Lifecycle(StepCallback):
    """Brings the ranks together at the start; saves at intervals, when the run is to stop, and at the end.

    Args:
        resume_from: checkpoint that is restored before the first step.
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
        self.saves: BackgroundSaves | None = None

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
        self.saves = module.saves = self._make_saves(trainer, module)
        if trainer.is_global_zero:
            remove_leftovers(self.run_directory)
            append_event(self.run_directory, "training", step=module.step, start_up_seconds=self.start_up.read())

    def stop_requested(self) -> bool:
        """On rank 0, whose clock counts for all: whether the run is to stop after the step that begins now."""
        return self.signals.requested() or self.time_limit.is_near()

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        last = module.is_last_step
        if step == module.first_step + 1:  # an optimizer has no moments before
            module.saves.prepare(partial(rank_pieces, trainer, module))
        if not (last or module.stop_agreed or step % self.config.every_steps == 0):
            return
        with self.monitor.clock.during("checkpoint"):
            self._save(trainer, module, step)
            if last or module.stop_agreed:
                self._must_succeed(module.saves.settle(), step)
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
        module.saves.settle()  # never two at once
        (tokens,) = module.control.sum_integers(module.counts.real_tokens)
        meta = self.make_meta(step, tokens, module.budget)
        meta = replace(meta, loss_scale=read_loss_scale(trainer, module))
        module.saves.begin(step, partial(rank_pieces, trainer, module), describe(meta))

    def _make_saves(self, trainer: pl.Trainer, module: Any) -> BackgroundSaves:
        config = self.config
        retention = Retention(config.keep_last, config.every_steps, config.keep_every_steps)
        (token,) = module.control.sum_integers(secrets.randbits(_TOKEN_BITS) if trainer.is_global_zero else 0)
        return BackgroundSaves(
            self.run_directory, module.control, trainer.global_rank, retention, f"{token:x}", self._tell_outcome
        )

    def _tell_outcome(self, outcome: Outcome) -> None:
        with self.monitor.clock.during("checkpoint"):
            seconds = {"stall_seconds": round(outcome.stall_seconds, 3), "seconds": round(outcome.seconds, 3)}
            if outcome.error is not None:
                self._tell("checkpoint_failed", outcome.step, error=outcome.error, **seconds)
                get_logger().warning(
                    "no checkpoint of step %d: %s. The older ones are untouched; the next save comes at an interval "
                    "(checkpoint.every_steps), or when the run stops", outcome.step, outcome.error,
                )  # fmt: skip
                return
            self._tell("checkpoint", outcome.step, path=outcome.path.name, **seconds)
            for step in outcome.deleted:
                get_logger().info("checkpoint of step %d deleted (checkpoint.keep_last)", step)
            if outcome.warning is not None:
                get_logger().warning("after the checkpoint of step %d: %s", outcome.step, outcome.warning)

    @staticmethod
    def _must_succeed(error: str | None, step: int) -> None:
        """Nothing comes after this save that could make up for it.

        Raises:
            UserError: it has failed; on every rank.
        """
        if error is not None:
            raise UserError(
                f"checkpoint of step {step}: it could not be written ({error}), and the run ends with it. The older "
                "checkpoints are untouched: see to the disk, then run the same command to go on from the newest."
            )

    def _tell(self, name: str, step: int, **facts: Any) -> None:
        """Note an event in the run directory, on the console and in wandb; rank 0 only."""
        try:
            append_event(self.run_directory, name, step=step, **facts)
        except OSError as error:  # the disk may be as full as it was for the save
            get_logger().warning("the event %s of step %d is not noted: %s", name, step, error)
        self.monitor.event(name, step=step, **facts)

    def teardown(self, trainer: pl.Trainer, module: Any) -> None:
        if self.saves is not None:
            self.saves.close()


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
