"""The timed entries of `benchmarks/gpu.py`: a model size against its peers, one contender after the other.

Letters: R rows of a step, S sequence length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np
import torch

from benchmarks.batch_size import fastest_rows, release_memory
from benchmarks.our_training import OurStep, seconds_a_step_of_training, stock_model
from benchmarks.peers import hf_trainer
from benchmarks.peers.modern_bert import modern_bert
from benchmarks.peers.plain_gpt import PlainGpt, PlainLoop, padded_vocabulary
from benchmarks.record import Goal, Result, Table, significant
from benchmarks.workload import Shape, Workload, full_rows
from pipeline.models.flops import flops_per_step
from pipeline.monitor.meters import model_flops_utilization
from pipeline.monitor.peak_flops import number_format, peak_flops

_COUNTED_STEPS: Final = 20
_PEER_DOCUMENT_TOKENS: Final = 4_000_000


@dataclass(frozen=True)
class Scale:
    """How an entry is measured."""

    steps: int
    """Timed, after :attr:`warmup_steps`."""

    warmup_steps: int
    batch_tokens: tuple[int, ...]
    """Tokens a step that the search tries, ascending."""

    compiled: bool
    loader_processes: int
    deadline_seconds: float
    """On ``time.monotonic()``: a contender that would begin later is left out, and this is said."""

    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A model size and what is to be reached with it."""

    shape: Shape
    tokens_a_second: float


@dataclass(frozen=True)
class Counts:
    """Of a step, mean: what its FLOPs are counted from."""

    real_tokens: float
    squared_lengths: float
    predictions: float
    prediction_lengths: float


@dataclass(frozen=True)
class Timed:
    """A contender's step."""

    num_rows: int
    seconds: float
    counts: Counts
    gigabytes: float | None
    is_our_model: bool = True
    """The FLOPs are those of our model; else the MFU is not known."""


def measure_size(name: str, target: Target, work: Workload, scale: Scale) -> tuple[list[Result], Table]:
    """Ours and all peers on one model size."""
    contenders: dict[str, Callable[[], Timed]] = {
        "ours": lambda: _our_training(work, scale),
        "ours, step by itself": lambda: _our_step(work, scale),
        "HF Trainer, SDPA, full rows": lambda: _trainer(work, scale, compiled=False),
    }
    if scale.compiled:
        contenders["HF Trainer, SDPA, compiled, full rows"] = lambda: _trainer(work, scale, compiled=True)
    if work.shape.is_causal:
        contenders["plain loop"] = lambda: _plain(work, scale)
    else:
        contenders["HF Trainer, ModernBERT-base, full rows"] = lambda: _trainer(
            work, scale, scale.compiled, modern_bert, is_our_model=False
        )
    timed = _all_timed(name, contenders, scale)
    speeds = {contender: found.counts.real_tokens / found.seconds for contender, found in timed.items()}
    peers = {contender: speed for contender, speed in speeds.items() if not contender.startswith("ours")}
    goal = Goal(ours=target.tokens_a_second)
    results = [Result(name, "real tokens/s", "higher", speeds["ours"], peers, goal)] if "ours" in speeds else []
    return results, _table(work, timed, speeds)


def _all_timed(name: str, contenders: Mapping[str, Callable[[], Timed]], scale: Scale) -> dict[str, Timed]:
    timed: dict[str, Timed] = {}
    for contender, measure in contenders.items():
        full_name = f"{name}, {contender}"
        missing = hf_trainer.missing_library() if contender.startswith("HF") else None
        if missing or time.monotonic() > scale.deadline_seconds:
            scale.skipped[full_name] = missing or "no time was left"
            continue
        print(f"  {full_name}", flush=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        torch.compiler.reset()
        try:
            timed[contender] = measure()
        except torch.OutOfMemoryError:
            scale.skipped[full_name] = "out of memory with the smallest batch"
        release_memory()
    return timed


def _our_step(work: Workload, scale: Scale) -> Timed:
    rows = _our_rows(work, scale)
    sized = work.with_rows(rows)
    step = OurStep(sized.config(compile=scale.compiled))
    seconds = step.seconds_a_step(scale.steps, scale.warmup_steps)
    step.close()
    return Timed(rows, seconds, _our_counts(sized), _gigabytes())


def _our_training(work: Workload, scale: Scale) -> Timed:
    rows = _our_rows(work, scale)
    sized = work.with_rows(rows)
    seconds = seconds_a_step_of_training(sized.config(compile=scale.compiled), scale.warmup_steps + scale.steps)
    return Timed(rows, seconds, _our_counts(sized), _gigabytes())


def _our_rows(work: Workload, scale: Scale) -> int:
    """Rows of the fastest step that is not compiled: compiling for every size would take minutes."""

    def speed(rows: int) -> float:
        sized = work.with_rows(rows)
        step = OurStep(sized.config())
        try:
            return rows * work.shape.sequence_length / step.seconds_a_step(3, warmup_steps=2)
        finally:
            step.close()

    return fastest_rows(speed, _candidates(work, scale))


def _trainer(
    work: Workload,
    scale: Scale,
    compiled: bool,
    make_model: Callable[[Workload], Any] = lambda work: stock_model(work, "sdpa", our_weights=False),
    is_our_model: bool = True,
) -> Timed:
    length = work.shape.sequence_length
    rows = full_rows(_peer_documents(work), length)
    if work.shape.is_causal:
        examples, collate = hf_trainer.causal_examples(rows), hf_trainer.stacking_collator()
    else:
        examples = hf_trainer.masked_examples(list(rows))
        collate = hf_trainer.masking_collator(work.shape.vocab_size)

    def seconds(num_rows: int, num_steps: int, warmup_steps: int, compiled: bool) -> float:
        settings = hf_trainer.TrainerSettings(num_rows, work.hardware, compiled, scale.loader_processes)
        run = hf_trainer.run_trainer(make_model(work), examples, collate, settings, warmup_steps + num_steps)
        return run.clock.seconds_a_step(warmup_steps)

    candidates = [number for number in _candidates(work, scale) if number <= len(rows)]
    num_rows = fastest_rows(lambda number: number * length / seconds(number, 3, 2, compiled=False), candidates)
    spent = seconds(num_rows, scale.steps, scale.warmup_steps, compiled)
    return Timed(num_rows, spent, _full_counts(work, num_rows), _gigabytes(), is_our_model)


def _plain(work: Workload, scale: Scale) -> Timed:
    tokens = np.concatenate(_peer_documents(work))

    def loop(num_rows: int, compiled: bool) -> PlainLoop:
        with torch.device(work.hardware.device):
            model = PlainGpt(work.shape, padded_vocabulary(work.shape.vocab_size))
        return PlainLoop(model, tokens, num_rows, work.hardware, compiled)

    def speed(num_rows: int) -> float:
        return num_rows * work.shape.sequence_length / loop(num_rows, compiled=False).seconds_a_step(3, warmup_steps=2)

    num_rows = fastest_rows(speed, _candidates(work, scale))
    seconds = loop(num_rows, scale.compiled).seconds_a_step(scale.steps, scale.warmup_steps)
    return Timed(num_rows, seconds, _full_counts(work, num_rows), _gigabytes())


def _candidates(work: Workload, scale: Scale) -> list[int]:
    return [max(1, tokens // work.shape.sequence_length) for tokens in scale.batch_tokens]


def _peer_documents(work: Workload) -> list[np.ndarray]:
    steps = -(-_PEER_DOCUMENT_TOKENS // (64 * work.shape.sequence_length))
    sized = work.with_rows(64)
    return sized.documents(max(1, min(steps, sized.streams.train.num_rows // 64)))


def _our_counts(work: Workload) -> Counts:
    step = OurStep(work.config())
    batches = list(islice(step.batches, _COUNTED_STEPS))
    step.close()
    names = ("num_real_tokens", "sum_squared_lengths", "num_predictions", "sum_prediction_lengths")
    return Counts(*(sum(int(getattr(batch, name)) for batch in batches) / len(batches) for name in names))


def _full_counts(work: Workload, num_rows: int) -> Counts:
    length = work.shape.sequence_length
    share = (length - 1) / length if work.shape.is_causal else work.config().objective.mask_rate
    tokens = float(num_rows * length)
    return Counts(tokens, tokens * length, tokens * share, tokens * share * length)


def _gigabytes() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def _table(work: Workload, timed: Mapping[str, Timed], speeds: Mapping[str, float]) -> Table:
    rows: list[list[str | float | int]] = []
    for name, found in timed.items():
        share = utilization(work, found) if found.is_our_model else None
        mfu = "-" if share is None else f"{100 * share:.1f}"
        memory = "-" if found.gigabytes is None else f"{found.gigabytes:.1f}"
        rows.append([name, significant(speeds[name]), mfu, significant(1e3 * found.seconds), found.num_rows, memory])
    return Table(["contender", "real tokens/s", "MFU, %", "ms a step", "rows a step", "most memory, GB"], rows)


def utilization(work: Workload, timed: Timed) -> float | None:
    """MFU; None where the peak of the device is not known."""
    if work.hardware.device != "cuda":
        return None
    config, counts = work.config(), timed.counts
    peak = peak_flops(
        torch.cuda.get_device_name(), number_format(config.train.precision, config.train.matmul_precision)
    )
    flops = flops_per_step(
        config.model,
        work.shape.vocab_size,
        round(counts.real_tokens),
        round(counts.squared_lengths),
        round(counts.predictions),
        round(counts.prediction_lengths),
    )
    return model_flops_utilization(flops, timed.seconds, peak, 1)
