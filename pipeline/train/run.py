"""The story of a run: open the data, find the newest checkpoint, build the model, fit, leave."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.base.logs import get_logger
from pipeline.base.ranks import RankFacts, rank_facts
from pipeline.config.derived import BatchPlan
from pipeline.config.run import RunConfig
from pipeline.monitor.callback import ProgressCallback
from pipeline.monitor.progress import ProgressFile
from pipeline.train.faults import StopSignals, fit
from pipeline.train.loss_scaling import LossScaling
from pipeline.train.run_directory import check_run_directory, note_finished, sole_run
from pipeline.train.saving import Lifecycle
from pipeline.train.setup import (
    Start,
    find_start,
    make_bad_steps,
    make_meta,
    make_module,
    make_monitor,
    make_trainer,
    prepare_process,
    start_sinks,
)
from pipeline.train.start_up import StartUpClock
from pipeline.train.step_timing import TimedBatches
from pipeline.train.streams import Streams, open_streams
from pipeline.train.validation import Validation
from pipeline.train.watch import RankWatch


@dataclass(frozen=True)
class RunOutcome:
    """How a call of :func:`train` ended: after the last step, or after step ``step`` on a signal."""

    run_directory: Path
    step: int
    finished: bool


def train(
    config: RunConfig,
    facts: RankFacts | None = None,
    signals: StopSignals | None = None,
    began: float | None = None,
    accepted_changes: Sequence[str] = (),
) -> RunOutcome:
    """Train in ``config.run_directory``, or go on from its newest checkpoint. Every rank calls it.

    Args:
        facts: place of this rank; default: read from the launcher's environment.
        signals: may have been caught already, and stay caught when this returns; default: caught during the call.
        began: when this start began, for its goodput; seconds since 1970, default: now.
        accepted_changes: keys that may differ from those of the checkpoint.

    Raises:
        UserError: everything that a user can get wrong, before the first step.
    """
    facts, start_up = facts or rank_facts(), StartUpClock(began or time.time())
    plan, device = prepare_process(config, facts)
    run_directory = Path(config.run_directory)
    check_run_directory(run_directory)

    caught = signals or StopSignals()
    try:
        start_up.enter("data")
        streams = open_streams(config)
        start_up.enter("lock")
        with sole_run(config) if facts.rank == 0 else nullcontext():
            start_up.enter("load")
            start = find_start(config, streams.identity, facts, accepted_changes)
            if start.ends(config):
                return _nothing_to_do(config, start, facts)
            return _train_from(start, config, streams, plan, facts, device, caught, start_up)
    finally:
        if signals is None:
            caught.restore()


def _train_from(
    start: Start,
    config: RunConfig,
    streams: Streams,
    plan: BatchPlan,
    facts: RankFacts,
    device: torch.device,
    signals: StopSignals,
    start_up: StartUpClock,
) -> RunOutcome:
    """Build the parts and fit."""
    run_directory = Path(config.run_directory)
    start_up.enter("model")
    module = make_module(config, streams, start, plan, device)
    loader = TimedBatches(streams.train_loader(start.step, plan, facts, device), module.clock)
    start_up.enter("monitor")
    sinks = start_sinks(config, streams, start, plan, device, start_up.began) if facts.rank == 0 else []
    progress = [ProgressCallback(ProgressFile(run_directory, start.step))] if facts.rank == 0 else []
    monitor = make_monitor(config, streams, start, device, sinks, module.clock)
    bad_steps = make_bad_steps(config, streams, start, monitor)
    lifecycle = Lifecycle(
        config.checkpoint,
        run_directory,
        resume_from=start.directory,
        make_meta=lambda step, tokens, budget: make_meta(
            config, streams.identity(step), facts.world_size, step, start.tokens + tokens, budget, bad_steps.state()
        ),
        monitor=monitor,
        signals=signals,
        start_up=start_up,
    )
    validation = Validation(lambda step: streams.validation_batches(step, plan, facts), config.evaluation, monitor)
    # The order counts: what changes weights comes first, what is logged with a step before the monitor, and all of it
    # before the save.
    scaling = [LossScaling(monitor)] if config.train.precision == "fp16" else []
    features = [*progress, bad_steps, *scaling, validation, monitor, lifecycle]
    start_up.enter("import")  # of DeepSpeed
    trainer = make_trainer(config, plan, facts, device, streams.num_parameters, features)
    start_up.enter("rendezvous")
    try:
        with RankWatch(config.train, module, facts, run_directory):
            fit(trainer, module, loader)
    finally:
        for sink in sinks:
            sink.close()
    finished = lifecycle.stopped_at is None
    if finished and facts.rank == 0:
        note_finished(run_directory, module.step)
    return RunOutcome(run_directory, module.step, finished)


def _nothing_to_do(config: RunConfig, start: Start, facts: RankFacts) -> RunOutcome:
    run_directory = Path(config.run_directory)
    get_logger().info(
        "nothing to do: step %d of %d is done%s", start.step, config.train.steps,
        f", and schedule.budget_hours ({config.schedule.budget_hours:g}) are spent" if start.budget_spent else "",
    )  # fmt: skip
    if facts.rank == 0:
        note_finished(run_directory, start.step)
    return RunOutcome(run_directory, start.step, finished=True)
