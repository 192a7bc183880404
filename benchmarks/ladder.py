"""The ladder: from a plain loop over padded documents to the project's step, one switch at a time.

Every rung is a bare loop with the same weights, optimizer, clipping and corpus; what changes is named.

Letters: R rows, S sequence length, V vocabulary.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.batch_size import release_memory
from benchmarks.equal_steps import IGNORED, dense
from benchmarks.our_training import OurStep, stock_model
from benchmarks.record import Table, significant
from benchmarks.workload import Workload, real_tokens_a_step
from pipeline.config.run import RunConfig
from pipeline.models.packed import packed_logits
from pipeline.objectives.batch import Batch


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what it adds to the one below."""

    name: str
    attention: str | None = None
    """transformers' own attention on the stock class, over documents a row (BERT) or full rows (GPT); None: packed."""

    whole_logits: bool = False
    """All logits exist at once, else the head's loss is computed chunk by chunk."""

    all_positions: bool = False
    """The head computes the logits of every token; only with ``whole_logits``."""

    fused_optimizer: bool = True
    """AdamW as one kernel, else torch's default for the device."""

    switches: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the config by their dotted names."""


class _StockStep(OurStep):
    """The stock class with stock attention over unpacked rows: all logits, the stock loss."""

    def __init__(self, workload: Workload, config: RunConfig, attention: str) -> None:
        super().__init__(config)
        self.module.model = stock_model(workload, attention).to(self.device)
        self.is_causal = workload.shape.is_causal

    def loss_sum(self, batch: Batch) -> Tensor:
        inputs, labels = dense(batch)  # R S, twice
        arguments = {} if self.is_causal else {"attention_mask": (inputs != 0).long()}
        with self.autocast():
            logits = self.module.model(input_ids=inputs, use_cache=False, **arguments).logits  # R S V
            return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")


class _WholeLogits(OurStep):
    """Packed rows, and a loss whose logits all exist at once."""

    def loss_sum(self, batch: Batch) -> Tensor:
        rows = (batch.input_ids.view(1, -1), batch.position_ids.view(1, -1))  # 1 R*S, twice
        with self.autocast():
            logits = packed_logits(
                self.module.model, *rows, batch.cu_seqlens, batch.max_seqlen, batch.prediction_positions
            )  # P V
            return cross_entropy(logits.float(), batch.labels, ignore_index=IGNORED, reduction="sum")


class _AllPositions(_WholeLogits):
    """Packed rows, but the head computes the logits of every token."""

    def loss_sum(self, batch: Batch) -> Tensor:
        positions = torch.arange(batch.input_ids.numel(), device=self.device)
        return super().loss_sum(replace(batch, prediction_positions=positions, labels=dense(batch)[1].flatten()))


def open_rung(workload: Workload, rung: Rung) -> OurStep:
    """The step of a rung."""
    config = with_switches(workload.config(compile=False), rung.switches)
    step: OurStep
    if rung.attention is not None:
        unpacked: dict[str, Any] = {"packing": "concatenate", "cross_document_attention": True}
        if not workload.shape.is_causal:
            unpacked = {"packing": "one_document"}
        config = replace(config, data=replace(config.data, **unpacked))
        step = _StockStep(workload, config, rung.attention)
    elif rung.whole_logits:
        step = (_AllPositions if rung.all_positions else _WholeLogits)(config)
    else:
        step = OurStep(config)
    if not rung.fused_optimizer or rung.attention is not None:
        parameters = step.module.model.parameters()
        fused = True if rung.fused_optimizer else None
        step.optimizer = torch.optim.AdamW(parameters, lr=config.optimizer.learning_rate, fused=fused)
    return step


def with_switches(config: RunConfig, switches: Mapping[str, Any]) -> RunConfig:
    """The config with some keys changed, given by dotted names."""
    for name, value in switches.items():
        section, key = name.split(".")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def rungs(is_causal: bool, graphs: bool = False) -> list[Rung]:
    """From the bottom up; each keeps what those below it have switched on.

    Args:
        graphs: CUDA graphs too.
    """
    rows = "full rows" if is_causal else "padded documents"
    stock = {"model.drop_ins": False}
    eager = Rung(f"{rows}, eager attention", attention="eager", fused_optimizer=False)
    sdpa = replace(eager, name=f"{rows}, SDPA", attention="sdpa")
    packed = Rung("packed rows, attention inside documents", None, True, True, fused_optimizer=False, switches=stock)
    sparse = replace(packed, name="head on the predicted positions only", all_positions=False)
    # A causal model predicts at every position but a document's last: there is nothing to leave out.
    middle = [replace(sparse, name=packed.name)] if is_causal else [packed, sparse]
    chunked = replace(sparse, name="loss chunk by chunk", whole_logits=False)
    fused = replace(chunked, name="fused optimizer", fused_optimizer=True)
    # Of an encoder the drop-in is its last block; of GPT-2, GELU.
    named = "one kernel for GELU" if is_causal else "last block at the predicted positions only"
    drop_ins = replace(fused, name=named, switches={"model.drop_ins": True})
    compiled = replace(drop_ins, name="torch.compile", switches={**drop_ins.switches, "train.compile": True})
    replayed = {**compiled.switches, "train.compile_mode": "reduce-overhead"}
    last = [replace(compiled, name="CUDA graphs", switches=replayed)] if graphs else []
    return [eager, sdpa, *middle, chunked, fused, drop_ins, compiled, *last]


def measure_ladder(
    workload: Workload,
    chosen: Sequence[Rung],
    time_step: Callable[[OurStep], float],
    rounds: int = 1,
) -> Table:
    """Every rung, one after the other, ``rounds`` times from the bottom up; medians.

    Args:
        time_step: seconds a step of a rung that was just opened.
    """
    speeds: dict[str, list[float]] = {rung.name: [] for rung in chosen}
    for _ in range(rounds):
        for rung in chosen:
            try:
                speeds[rung.name].append(_speed(workload, rung, time_step))
                print(f"  {rung.name}: {speeds[rung.name][-1]:,.0f} real tokens/s", flush=True)
            except torch.OutOfMemoryError:
                continue
            finally:
                release_memory()
    rows: list[list[str | float | int]] = []
    below = first = 0.0
    for name, measured in speeds.items():
        if not measured:
            rows.append([name, "out of memory", "", ""])
            continue
        speed = statistics.median(measured)
        gain, total = (f"{speed / other:.2f}" if other else "" for other in (below, first))
        rows.append([name, significant(speed), gain, total])
        below, first = speed, first or speed
    return Table(["switch", "real tokens/s", "times the one above", "times the first"], rows)


def _speed(workload: Workload, rung: Rung, time_step: Callable[[OurStep], float]) -> float:
    step = open_rung(workload, rung)
    try:
        return real_tokens_a_step(step.streams) / time_step(step)
    finally:
        step.close()
