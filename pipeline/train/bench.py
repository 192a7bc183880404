"""`pretrain bench`: what a step of a config takes on the machine at hand, measured on the path that training takes.

Model, objective, packing, loader, strategy and compilation are those of the run. There is no log, no validation, no
checkpoint and no run directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts, rank_facts
from pipeline.config.derived import BatchPlan, corpora_of
from pipeline.config.run import RunConfig
from pipeline.config.stages import Stage, stages_of
from pipeline.monitor.callback import StepCallback
from pipeline.monitor.meters import memory_gb, model_flops_utilization
from pipeline.monitor.step_clock import Phase
from pipeline.train.control import join_ranks
from pipeline.train.faults import ended_by_sigterm, fit
from pipeline.train.setup import Start, device_peak_flops, make_module, make_trainer, prepare_process, step_flops
from pipeline.train.step_timing import StepMarks, TimedBatches
from pipeline.train.streams import open_streams
from pipeline.train.synthetic_corpus import write_synthetic_corpus

DataChoice = Literal["auto", "corpus", "synthetic"]


@dataclass(frozen=True)
class Measured:
    """Some steps after the warmup; counts are of all ranks, times of rank 0, the memory of the rank that has most."""

    step_seconds: list[float]
    """Every step by itself."""

    phase_seconds: dict[Phase, float]
    """All steps together, by phase."""

    real_tokens: int
    predictions: int
    flops: float
    peak_memory_gb: float

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(self.step_seconds)


@dataclass(frozen=True)
class Bench:
    """What was measured, and on what."""

    config: RunConfig
    plan: BatchPlan
    stage: Stage
    device: torch.device
    synthetic: bool
    num_parameters: int
    peak_flops_per_device: float | None
    measured: Measured

    @property
    def mfu(self) -> float | None:
        """None where the peak of the device is not known."""
        measured = self.measured
        return model_flops_utilization(
            measured.flops, measured.seconds, self.peak_flops_per_device, self.plan.world_size
        )


def bench(
    config: RunConfig,
    *,
    num_steps: int = 20,
    warmup_steps: int = 5,
    data: DataChoice = "auto",
    step: int | None = None,
    facts: RankFacts | None = None,
) -> Bench:
    """Measure some steps of ``config``; every rank calls it.

    Args:
        warmup_steps: steps before those that are measured: kernels are compiled and memory is taken in them.
        data: the config's corpus, or documents of random tokens in a temporary folder; ``auto``: the corpus if it is
            there.
        step: first step, counted from 1. Default: the first step of the last stage that the run reaches.
        facts: place of this rank; default: read from the launcher's environment.

    Raises:
        UserError: everything that :func:`pipeline.train.run.train` refuses, a number out of range, a stage that ends
            before the steps do, or too little memory.
    """
    _check_numbers(num_steps, warmup_steps, step)
    facts = facts or rank_facts()
    stages = stages_of(config)
    first_step = stages.begun(config.train.steps)[-1].first_step if step is None else step - 1
    last_step = first_step + warmup_steps + num_steps
    stage = stages.of_step(first_step)
    if stages.of_step(last_step - 1) != stage:
        raise UserError(
            f"bench: the steps {first_step + 1} to {last_step} are not of one stage ({stage}): their batches have "
            "different shapes. Give fewer --steps and --warmup, or another --step."
        )
    config = replace(config, train=replace(config.train, steps=max(config.train.steps, last_step)))
    with ended_by_sigterm(), _with_data(config, data) as (config, synthetic):
        plan, device = prepare_process(config, facts)
        streams = open_streams(config)
        module = make_module(config, streams, Start(step=first_step), plan, device)
        batches = islice(
            streams.train_loader(first_step, plan, facts, device), (warmup_steps + num_steps) * plan.accumulation
        )
        recorder = _Recorder(config, streams.vocab_size, warmup_steps)
        trainer = make_trainer(config, plan, facts, device, streams.num_parameters, [recorder])
        try:
            fit(trainer, module, TimedBatches(batches, module.clock))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise UserError(_out_of_memory(config, plan, stage, device)) from error
        assert recorder.measured is not None
        peak = device_peak_flops(config, device)
        return Bench(config, plan, stage, device, synthetic, streams.num_parameters, peak, recorder.measured)


class _Recorder(StepCallback):
    """Times every step after the warmup; nothing is read before the last one."""

    def __init__(self, config: RunConfig, vocab_size: int, warmup_steps: int) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.warmup_steps = warmup_steps
        self.num_steps = 0
        self.marks: StepMarks | None = None
        self.counts_before: Any = None
        self.measured: Measured | None = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        join_ranks(trainer, module)
        if not self.warmup_steps:
            self._begin(trainer, module)

    def on_step_end(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        self.num_steps += 1
        if self.num_steps == self.warmup_steps:
            self._begin(trainer, module)
        elif self.marks is not None:
            self.marks.add()

    def _begin(self, trainer: pl.Trainer, module: Any) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        module.control.barrier()
        module.clock.read()
        self.counts_before = module.all_counts
        self.marks = StepMarks(device)
        self.marks.add()

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        assert self.marks is not None
        step_seconds, phase_seconds = self.marks.seconds(), module.clock.read()
        counts, before = module.all_counts, self.counts_before
        total = module.control.sum_integers(*(new - old for new, old in zip(counts, before, strict=True)))
        tokens, predictions = total[0], total[2]
        flops = step_flops(self.config)(self.config.model, self.vocab_size, *total)
        memory = torch.tensor([memory_gb(trainer.strategy.root_device.type)], dtype=torch.float64)
        most = max(float(value) for value in module.control.gather(memory))
        self.measured = Measured(step_seconds, phase_seconds, tokens, predictions, flops, most)


@contextmanager
def _with_data(config: RunConfig, data: DataChoice) -> Iterator[tuple[RunConfig, bool]]:
    """The config with something to read, and whether that is synthetic."""
    if data == "corpus" or (data == "auto" and all(map(_is_there, corpora_of(config)))):
        yield config, False
        return
    with tempfile.TemporaryDirectory(prefix="pretrain-bench-") as directory:
        write_synthetic_corpus(Path(directory), config)
        yield replace(config, data=replace(config.data, corpus=directory, mixture=[], exclude=[])), True


def _is_there(entry: Any) -> bool:
    return "://" in entry.corpus or Path(entry.corpus or " ").is_dir()


def _check_numbers(num_steps: int, warmup_steps: int, step: int | None) -> None:
    numbers = (("--steps", num_steps, 2), ("--warmup", warmup_steps, 0), ("--step", 1 if step is None else step, 1))
    for name, value, least in numbers:
        if value < least:
            raise UserError(f"bench: {name} is {value}; give at least {least}.")


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(config: RunConfig, plan: BatchPlan, stage: Stage, device: torch.device) -> str:
    train = config.train
    further = [
        "set `train.activation_checkpointing: full`" if train.activation_checkpointing != "full" else "",
        "shard more with `train.strategy`" if train.strategy not in ("zero2", "zero3") else "",
    ]
    rows = plan.micro_rows[stage]
    return (
        f"out of memory on {device} with {rows} rows of {stage.sequence_length} tokens a micro-batch: "
        f"lower `train.micro_batch_size` (now {train.micro_batch_size}; more micro-batches a step are used instead, "
        f"the global batch stays){''.join(f', or {way}' for way in further if way)}."
    )
