"""The data of a run, ready to iterate: training micro-batches of a rank, and its share of the validation rows.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts
from pipeline.config.derived import BatchPlan
from pipeline.config.run import RunConfig
from pipeline.data.loader import make_loader
from pipeline.data.row_format import row_format
from pipeline.data.rows import RowFormat, Rows
from pipeline.data.stream import RowStream
from pipeline.models.flops import num_parameters
from pipeline.objectives.batch import Batch
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective, row_kind
from pipeline.shards.files import corpus_files
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest
from pipeline.train.validation import IGNORED

VALIDATION_SEED = 0x5EED
"""Not the run's seed: runs of different seeds are compared on the same rows and masks."""


@dataclass(frozen=True)
class Preparation:
    """Rows of a step -> this rank's micro-batches. Picklable: loader processes get it."""

    objective: Objective
    digesting: Objective
    """The same objective, which also digests its rows: costly, so only for steps whose digest is logged."""

    config: RunConfig
    pin_memory: bool

    def __call__(self, rows: Rows, num_micro_batches: int) -> list[Batch]:
        # Row n of the run belongs to step n // G + 1.
        step = int(rows.row_numbers.min()) // self.config.train.global_batch_size + 1
        monitor = self.config.monitor
        logged = step in (1, self.config.train.steps) or step % monitor.log_every_steps == 0
        objective = self.digesting if logged and monitor.batch_digest else self.objective
        batches = objective.prepare(rows, num_micro_batches, step)
        return [batch.pin_memory() for batch in batches] if self.pin_memory else batches


@dataclass(frozen=True)
class Streams:
    """Corpus and streams of a run."""

    config: RunConfig
    manifest: Manifest
    format: RowFormat
    train: RowStream
    validation: RowStream | None

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding."""
        return self.config.model.vocab_size or self.manifest.vocab_size

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones once."""
        pad = self.manifest.special_ids.get("pad")
        return num_parameters(self.config.model, self.vocab_size, 1 if pad is None else pad)

    def objective(self, seed: int, digests: bool = False) -> Objective:
        """The objective under a seed of its own."""
        return make_objective(
            self.config.objective,
            self.manifest,
            self.format,
            seed,
            packing=self.config.data.packing,
            digests=digests,
        )

    def train_loader(self, first_step: int, plan: BatchPlan, facts: RankFacts, device: torch.device) -> Any:
        """Micro-batches of this rank, from the step after ``first_step`` to the last of the run."""
        seed = self.config.seed
        # Copies from pinned memory run beside the kernels. Worker processes have no CUDA to pin with.
        pin = device.type == "cuda" and self.config.data.workers == 0
        preparation = Preparation(self.objective(seed), self.objective(seed, digests=True), self.config, pin)
        return make_loader(
            self.train,
            preparation,
            first_step=first_step,
            last_step=self.config.train.steps,
            rank=facts.rank,
            world_size=facts.world_size,
            micro_batch_size=plan.rows_per_micro_batch,
            workers=self.config.data.workers,
            prefetch_steps=self.config.data.prefetch_steps,
        )

    def validation_batches(self, plan: BatchPlan, facts: RankFacts) -> list[Batch]:
        """This rank's micro-batches of the held-out rows: as many on every rank, all of one shape.

        Rows that fill up the last round carry no labels.
        """
        if self.validation is None:
            return []
        total = min(self.config.evaluation.rows, self.validation.num_rows)
        begin, end = (total * rank // facts.world_size for rank in (facts.rank, facts.rank + 1))
        share = -(-total // facts.world_size)
        size = min(plan.rows_per_micro_batch, share)
        rounds = -(-share // size)
        index = np.arange(rounds * size)
        position = np.where(index < end - begin, begin + index, 0)
        rows = self.validation.rows_at(np.zeros_like(position), position, position)
        batches = self.objective(VALIDATION_SEED).prepare(rows, rounds)
        own = end - begin
        return [_without_labels_from(batch, own - number * size) for number, batch in enumerate(batches)]


def _without_labels_from(batch: Batch, num_rows: int) -> Batch:
    """The batch with the predictions of rows ``num_rows`` and later taken out of the loss."""
    sequence_length = batch.input_ids.shape[1]
    extra = batch.prediction_positions // sequence_length >= num_rows  # (P,)
    return replace(batch, labels=torch.where(extra, IGNORED, batch.labels))


def open_streams(config: RunConfig) -> Streams:
    """Open the corpus for this run.

    Raises:
        UserError: no corpus there, damaged, an empty split, or a tokenizer that does not fit the model or objective.
    """
    files = corpus_files(config.data.corpus)
    manifest = read_manifest(files)
    check_tokenizer(files, manifest)
    if config.model.vocab_size is not None and config.model.vocab_size < manifest.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size} is smaller than the tokenizer of corpus {files.location} "
            f"({manifest.vocab_size} ids); leave it out or set it to at least {manifest.vocab_size}."
        )
    form = row_format(manifest, row_kind(config.objective.name), config.data.sequence_length)

    def stream(split: str, seed: int) -> RowStream:
        return RowStream(
            files,
            manifest,
            split,
            row_format=form,
            packing=config.data.packing,
            open_shards=config.data.open_shards,
            seed=seed,
            global_batch_size=config.train.global_batch_size,
        )

    has_validation = "validation" in manifest.splits and int(manifest.splits["validation"].tokens.sum()) > 0
    return Streams(
        config=config,
        manifest=manifest,
        format=form,
        train=stream("train", config.seed),
        validation=stream("validation", VALIDATION_SEED) if has_validation else None,
    )
