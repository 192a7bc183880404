"""The parts of a run, built from its config: where it starts, model, sinks, monitor, trainer."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.base.logs import get_logger
from pipeline.base.ranks import RankFacts
from pipeline.base.slurm import own_job_id, own_job_restarts
from pipeline.checkpoints.meta import CheckpointMeta, read_meta
from pipeline.config.derived import BatchPlan, batch_plan, has_generator, head_of
from pipeline.config.loading import to_plain
from pipeline.config.model import ModelConfig
from pipeline.config.run import RunConfig
from pipeline.models.attention import check_device, use_flash_attention_3
from pipeline.models.blocks import checkpoint_activations
from pipeline.models.build import build_model
from pipeline.models.electra import build_replaced_token_model, replaced_token_flops
from pipeline.models.flops import flops_per_step, seq2seq_flops_per_step
from pipeline.models.forms import form_of, reasons_for_slow_attention
from pipeline.monitor.callback import MonitorCallback, StepCallback, StepCallbacks
from pipeline.monitor.events import append_event
from pipeline.monitor.json_lines import utc_time
from pipeline.monitor.peak_flops import number_format, peak_flops
from pipeline.monitor.progress import read_progress
from pipeline.monitor.sinks import Sink, make_sinks
from pipeline.monitor.step_clock import StepClock
from pipeline.optim.groups import unused_patterns
from pipeline.train.bad_steps import BadSteps
from pipeline.train.budget import TimeBudget
from pipeline.train.compilation import compile_step, prepare_compiler
from pipeline.train.detector import Detector
from pipeline.train.fallback import newest_intact_checkpoint
from pipeline.train.identity import check_identity
from pipeline.train.module import PretrainModule
from pipeline.train.process import quiet_lightning, set_threads
from pipeline.train.run_directory import enter_run_directory
from pipeline.train.start_weights import load_start
from pipeline.train.step_loop import use_step_loop
from pipeline.train.step_timing import make_clock
from pipeline.train.strategies import make_strategy, resolve_device
from pipeline.train.streams import Streams
from pipeline.train.teachers import make_loss, teacher_shape

_INIT_STREAM = 0x1417  # keeps the key of the initial weights apart from the others
_PACKAGES = ("torch", "transformers", "lightning", "deepspeed", "numpy")


@dataclass(frozen=True)
class Start:
    """Where the run begins: the newest checkpoint, or nothing."""

    step: int = 0
    tokens: int = 0
    directory: Path | None = None
    training_seconds: float = 0.0
    budget_spent: bool = False
    """The last step that a time budget allows is done. A run that was stopped after its time, before that step, has it
    still to do: it is the one with the final rate and the last evaluation."""
    bad_steps: dict[str, Any] = field(default_factory=dict)
    """State of the detector of bad steps."""
    accepted_changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What differs from the checkpoint's run and was accepted: key -> the two values."""

    def ends(self, config: RunConfig) -> bool:
        """Whether nothing is left to train."""
        return self.step >= config.train.steps or self.budget_spent


def find_start(
    config: RunConfig, identity: Callable[[int], dict[str, Any]], facts: RankFacts, accepted: Sequence[str] = ()
) -> Start:
    """The newest intact checkpoint of the run directory, checked against this config.

    Args:
        identity: of this run up to a step.
        accepted: keys of it that may have changed.

    Raises:
        UserError: it belongs to another run; none of the checkpoints is intact.
    """
    directory = newest_intact_checkpoint(Path(config.run_directory), is_first_rank=facts.rank == 0)
    if directory is None:
        return Start()
    meta = read_meta(directory)
    changes = check_identity(meta.identity, identity(meta.step), str(directory), accepted)
    return Start(
        meta.step, meta.tokens_seen, directory, meta.training_seconds, meta.budget_spent, meta.bad_steps, changes
    )


def prepare_process(config: RunConfig, facts: RankFacts) -> tuple[BatchPlan, torch.device]:
    """Refuse what can be refused before anything is opened or written, by every rank alike; set threads.

    Raises:
        UserError: more ranks than rows, a device, a kernel or a compiler that is not there.
    """
    plan = batch_plan(config, facts.world_size)
    device = resolve_device(config.train, facts)
    check_device(config.model, device.type, config.train.precision)
    use_flash_attention_3(device.type)
    if config.train.compile:
        prepare_compiler(config.train, device)
    set_threads(config.train, facts)
    quiet_lightning()
    return plan, device


def make_module(
    config: RunConfig, streams: Streams, start: Start, plan: BatchPlan, device: torch.device
) -> PretrainModule:
    """The model with what a step computes, compiled if the config says so."""
    loss = make_loss(config, streams, device)
    model = make_model(config, streams)
    if (form := form_of(config)) is not None:
        get_logger().info("model: %s", form)
    for reason in reasons_for_slow_attention(config) if device.type == "cuda" else ():
        get_logger().warning("%s. The exact operator runs, many times slower.", reason)
    if start.directory is None:
        load_start(model, config, streams)
    module = PretrainModule(model, loss, config, plan, start.step, start.training_seconds)
    module.clock = make_clock(device)
    checkpoint_activations(module.model, config.train.activation_checkpointing)
    if config.train.compile:
        compile_step(module)
    return module


def make_model(config: RunConfig, streams: Streams) -> Any:
    """The stock model with this seed's initial weights; a checkpoint's are filled in when the strategy is set up.

    Raises:
        UserError: see ``build_model``; a group of ``optimizer.groups`` has no parameter.
    """
    build = build_replaced_token_model if has_generator(config) else partial(build_model, head=head_of(config))
    model = build(
        config.model,
        vocab_size=streams.manifest.vocab_size,
        special_ids=streams.manifest.special_ids,
        seed=key(config.seed, _INIT_STREAM),
    )
    _check_groups(model, config)
    return model


def _check_groups(model: Any, config: RunConfig) -> None:
    unused = unused_patterns(model, config.optimizer)
    if unused:
        names = [name for name, _ in model.named_parameters()]
        patterns = ", ".join(f"`{pattern}`" for pattern in unused)
        raise UserError(
            f"optimizer.groups: {patterns}: no parameter of this model has such a name, or an earlier group has taken "
            f"it. `*` stands for any text; names are like `{names[0]}` and `{names[len(names) // 2]}`."
        )


def start_sinks(
    config: RunConfig, streams: Streams, start: Start, plan: BatchPlan, device: torch.device, began: float
) -> list[Sink]:
    """Enter the run directory, write down the start, open the sinks; rank 0 only.

    Args:
        began: when this start began, in seconds since 1970.
    """
    run_directory = enter_run_directory(config, start.step)
    facts = {
        "total_steps": config.train.steps,
        "world_size": plan.world_size,
        "strategy": config.train.strategy,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "host": platform.node(),
        "process": os.getpid(),
        "job": own_job_id(),
        "job_restarts": own_job_restarts(),
        "parameters": streams.num_parameters,
        "rows_per_micro_batch": plan.micro_rows[streams.stages.of_step(start.step)],
        "accumulation": plan.accumulation,
        "corpus_fingerprint": streams.manifest.fingerprint,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    if start.accepted_changes:
        append_event(run_directory, "change_accepted", step=start.step, changes=start.accepted_changes)
    times = {"began": utc_time(began), **how_far_it_came(run_directory)}
    append_event(run_directory, "resumed" if start.step else "started", step=start.step, **times, **facts)
    sinks = make_sinks(run_directory, config.monitor, run_name=run_directory.name)
    for sink in sinks:
        sink.start({"first_step": start.step, **facts}, shown_config(config))
    return sinks


def how_far_it_came(run_directory: Path) -> dict[str, Any]:
    """The last step of the start before this one and when it was done: what is redone is what it has beyond the
    checkpoint. Empty for the first start."""
    progress = read_progress(run_directory)
    return {} if progress is None else {"reached": progress.step, "reached_at": utc_time(progress.time)}


def shown_config(config: RunConfig) -> dict[str, Any]:
    """The config for other eyes: options of a remote corpus may hold credentials."""
    plain = to_plain(config)
    plain["data"]["cache"]["storage_options"] = dict.fromkeys(config.data.cache.storage_options, "...")
    return plain


def device_peak_flops(config: RunConfig, device: torch.device) -> float | None:
    """Peak of one device in the precision of the run, FLOP/s: the config's, or the table's; None where unknown."""
    peak = config.monitor.peak_flops_per_device
    if peak is None and device.type == "cuda":
        numbers = number_format(config.train.precision, config.train.matmul_precision)
        return peak_flops(torch.cuda.get_device_name(device), numbers)
    return peak


def make_monitor(
    config: RunConfig, streams: Streams, start: Start, device: torch.device, sinks: list[Sink], clock: StepClock
) -> MonitorCallback:
    """The monitor's callback with the FLOP count of this model and the peak of this device."""
    return MonitorCallback(
        config.monitor,
        sinks,
        total_steps=config.train.steps,
        peak_flops_per_device=device_peak_flops(config, device),
        flops=partial(step_flops(config), config.model, streams.vocab_size),
        clock=clock,
        tokens_before=start.tokens,
    )


def step_flops(config: RunConfig) -> Callable[..., float]:
    """From (model config, vocabulary, counts as in ``PretrainModule.all_counts``) to the FLOPs of what is trained."""
    if has_generator(config):
        return lambda model, vocab_size, *counts: replaced_token_flops(model, vocab_size, *counts[:6])
    if any(task.name == "denoise" for task in config.objective.tasks):
        return lambda model, vocab_size, *counts: seq2seq_flops_per_step(model, vocab_size, *counts[:3], *counts[6:9])
    teacher = teacher_shape(config)

    def flops(model: ModelConfig, vocab_size: int, *counts: int) -> float:
        of_teacher = 0.0 if teacher is None else flops_per_step(teacher, vocab_size, *counts[9:15]) / 3  # forward only
        return flops_per_step(model, vocab_size, *counts[:6], head=head_of(config)) + of_teacher

    return flops


def make_bad_steps(config: RunConfig, streams: Streams, start: Start, monitor: MonitorCallback) -> BadSteps:
    """What skips bad steps, as it was when the checkpoint was written."""
    detector = Detector(
        config.train.bad_steps,
        config.train.skip_steps,
        stage_of=lambda step: streams.stages.of_step(step - 1).first_step,
        scaled=config.train.precision == "fp16",
    )
    detector.restore(start.bad_steps)
    return BadSteps(config, detector, monitor)


def make_meta(
    config: RunConfig,
    identity: dict[str, Any],
    world_size: int,
    step: int,
    tokens: int,
    budget: TimeBudget,
    bad_steps: dict[str, Any],
) -> CheckpointMeta:
    """What a checkpoint says of itself."""
    return CheckpointMeta(
        step=step,
        tokens_seen=tokens,
        strategy=config.train.strategy,
        precision=config.train.precision,
        world_size=world_size,
        identity=identity,
        facts={"versions": {name: version(name) for name in _PACKAGES}},
        training_seconds=round(budget.elapsed_seconds(), 3),
        budget_spent=budget.is_spent,
        bad_steps=bad_steps,
    )


def make_trainer(
    config: RunConfig,
    plan: BatchPlan,
    facts: RankFacts,
    device: torch.device,
    num_model_parameters: int,
    features: Sequence[StepCallback],
) -> pl.Trainer:
    """Lightning's Trainer, with everything switched off that this project does itself."""
    trainer = pl.Trainer(
        accelerator="cuda" if device.type == "cuda" else "cpu",
        devices=1,  # one rank a process; the strategy knows the device and the other ranks
        strategy=make_strategy(config.train, facts, device, num_model_parameters),
        accumulate_grad_batches=plan.accumulation,
        max_epochs=1,  # the loader ends with the last step of the run
        callbacks=[StepCallbacks(features)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    use_step_loop(trainer)
    return trainer
