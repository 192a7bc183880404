"""The data of a run, ready to iterate: training micro-batches of a rank, and its share of the validation rows.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.base.ranks import RankFacts
from pipeline.config.derived import BatchPlan, corpora_of, has_generator, head_of, row_objective
from pipeline.config.objective import ObjectiveConfig
from pipeline.config.run import RunConfig
from pipeline.config.stages import Stage, Stages, stages_of
from pipeline.data.corpora import files_at
from pipeline.data.exclusion import Exclusions, read_exclusions
from pipeline.data.gather import filler_rows, join_rows, split_rows
from pipeline.data.loader import make_loader
from pipeline.data.reverse_complement import ReverseComplement, read_complements
from pipeline.data.row_format import row_format
from pipeline.data.rows import Rows
from pipeline.data.source import Source
from pipeline.data.stream import RowStream, StreamSettings
from pipeline.models.auto import counted_shape
from pipeline.models.electra import num_replaced_token_parameters
from pipeline.models.families import attention_window
from pipeline.models.flops import num_parameters
from pipeline.models.forms import check_form, is_padded
from pipeline.objectives.batch import Batch
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective, row_kind
from pipeline.objectives.task_draw import TaskDraw
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest
from pipeline.train.identity import run_identity

VALIDATION_SEED = 0x5EED
"""Not the run's seed: runs of different seeds are compared on the same rows and masks."""

_VALIDATION_BATCH = 256
"""Rows a step of the validation stream, whatever the run's global batch: it decides which rows come first."""


@dataclass(frozen=True)
class Preparation:
    """Rows of a step -> this rank's micro-batches. Picklable: loader processes get it."""

    streams: Streams
    plan: BatchPlan
    pin_memory: bool

    def __call__(self, rows: Rows, steps: Sequence[int]) -> list[list[Batch]]:
        config, stage = self.streams.config, self.streams.stages.of_step(steps[0])
        objectives = self.streams.objectives(config.seed, stage.sequence_length)
        filled = self._filled(self.streams.augmented(rows), len(steps), stage)
        numbers = [step + 1 for step in steps]  # as logs count
        digested = [number for number in numbers if self._is_logged(number)] if config.monitor.batch_digest else []
        batches = objectives.prepare_steps(filled, self.plan.accumulation, numbers, digested)
        if self.pin_memory:
            return [[batch.pin_memory() for batch in of_step] for of_step in batches]
        return batches

    def _is_logged(self, number: int) -> bool:
        config = self.streams.config
        return number in (1, config.train.steps) or number % config.monitor.log_every_steps == 0

    def _filled(self, rows: Rows, num_steps: int, stage: Stage) -> Rows:
        """The rows with fillers after those of every step, where a rank computes more rows than its share."""
        share = len(rows.row_numbers) // num_steps
        missing = self.plan.rows_per_rank(stage) - share
        if not missing:
            return rows
        fillers = filler_rows(missing, self.streams.train.format_of(stage.sequence_length), like=rows)
        return join_rows([part for own in split_rows(rows, [share] * num_steps) for part in (own, fillers)])


@dataclass(frozen=True)
class Streams:
    """Corpora and streams of a run."""

    config: RunConfig
    stages: Stages
    sources: Sequence[Source]
    exclusions: dict[str, int]

    reverse_complement: ReverseComplement | None = None
    """What puts rows of the other strand into training."""

    @property
    def manifest(self) -> Manifest:
        """Of the first corpus: what all have in common, as the tokenizer, stands in it."""
        return self.sources[0].manifest

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding."""
        return self.config.model.vocab_size or self.manifest.vocab_size

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones once."""
        pad = self.manifest.special_ids.get("pad")
        model, pad_id = self.config.model, 1 if pad is None else pad
        if has_generator(self.config):
            return num_replaced_token_parameters(model, self.vocab_size, pad_id)
        return num_parameters(model, self.vocab_size, pad_id, head_of(self.config))

    @cached_property
    def train(self) -> RowStream:
        """The rows to train on."""
        return self._stream(self.sources, "train", self.stages, self.config.seed)

    def augmented(self, rows: Rows) -> Rows:
        """Rows to train on, of one length, as the objective gets them."""
        if self.reverse_complement is None:
            return rows
        return self.reverse_complement(rows, self.train.format_of(rows.tokens.shape[1]))

    def validation(self, sequence_length: int) -> RowStream | None:
        """The held-out rows of all corpora, each once."""
        held_out = [
            Source(source.files, source.manifest, source.weight, epochs=1)
            for source in self.sources
            if "validation" in source.manifest.splits and int(source.manifest.splits["validation"].tokens.sum())
        ]
        if not held_out:
            return None
        return self._stream(held_out, "validation", Stages.single(_VALIDATION_BATCH, sequence_length), VALIDATION_SEED)

    def _stream(self, sources: Sequence[Source], split: str, stages: Stages, seed: int) -> RowStream:
        data = self.config.data
        settings = StreamSettings(
            packing=data.packing,
            kind=row_kind(row_objective(self.config).name),
            stages=stages,
            seed=seed,
            open_shards=data.open_shards,
            exponent=data.mixture_exponent,
            context_tokens=data.context_tokens,
        )
        objectives = self.objectives(seed, stages.all[0].sequence_length)
        exclusions = Exclusions(self.exclusions) if split == "train" else None
        return RowStream(
            sources,
            split,
            settings,
            words=objectives.needs_words,
            sentences=objectives.needs_sentences,
            exclusions=exclusions,
        )

    def objective(self, seed: int, sequence_length: int, step: int = 1) -> Objective:
        """The objective of a step (from 1) under a seed of its own, for rows of one length."""
        return self.objectives(seed, sequence_length).of_step(step)

    def objectives(self, seed: int, sequence_length: int) -> TaskDraw:
        """The objectives of the run under a seed of their own, for rows of one length."""
        name = (seed, sequence_length)
        if name not in self._objectives:
            config = self.config
            weights = [task.weight for task in config.objective.mixture] or [1.0]
            tasks = [
                self._make_objective(row_objective(config, task), seed, sequence_length)
                for task in config.objective.tasks
            ]
            self._objectives[name] = TaskDraw(tasks, weights, seed)
        return self._objectives[name]

    def _make_objective(self, objective: ObjectiveConfig, seed: int, sequence_length: int) -> Objective:
        return make_objective(
            objective,
            self.manifest,
            row_format(self.manifest, row_kind(objective.name), sequence_length),
            seed,
            packing=self.config.data.packing,
            cross_document_attention=self.config.data.cross_document_attention,
            documents_per_token=self._documents_per_token,
            window=attention_window(counted_shape(self.config.model, head_of(self.config))),
            padded=is_padded(self.config),
        )

    @cached_property
    def _documents_per_token(self) -> float:
        """Of the split with the shortest documents."""
        tables = [table for source in self.sources for table in source.manifest.splits.values()]
        return max(int(table.documents.sum()) / max(int(table.tokens.sum()), 1) for table in tables)

    @cached_property
    def _objectives(self) -> dict[tuple[int, int], TaskDraw]:
        return {}

    def identity(self, step: int) -> dict[str, Any]:
        """What a resume at ``step`` holds against its checkpoint."""
        return run_identity(self.config, self.manifest.fingerprint, self.train.settings_before(step), step)

    def train_loader(self, first_step: int, plan: BatchPlan, facts: RankFacts, device: torch.device) -> Any:
        """Micro-batches of this rank, from the step after ``first_step`` to the last of the run."""
        # Copies from pinned memory run beside the kernels. Worker processes have no CUDA to pin with.
        pin = device.type == "cuda" and self.config.data.workers == 0
        return make_loader(
            self.train,
            Preparation(self, plan, pin),
            first_step=first_step,
            last_step=self.config.train.steps,
            rank=facts.rank,
            world_size=facts.world_size,
            workers=self.config.data.workers,
            prefetch_steps=self.config.data.prefetch_steps,
        )

    def validation_batches(self, step: int, plan: BatchPlan, facts: RankFacts) -> list[Batch]:
        """This rank's micro-batches of the held-out rows, as long as those of step ``step``: as many on every rank, all
        of one shape; those of one objective of a mixture after those of another, of the same rows. Made once for every
        sequence length."""
        stage = self.stages.of_step(step)
        if stage.sequence_length not in self._validation_batches:
            self._validation_batches[stage.sequence_length] = self._make_validation_batches(stage, plan, facts)
        return self._validation_batches[stage.sequence_length]

    @cached_property
    def _validation_batches(self) -> dict[int, list[Batch]]:
        return {}

    def _make_validation_batches(self, stage: Stage, plan: BatchPlan, facts: RankFacts) -> list[Batch]:
        stream = self.validation(stage.sequence_length)
        if stream is None:
            return []
        total = min(self.config.evaluation.rows, stream.num_rows)
        begin, end = (total * rank // facts.world_size for rank in (facts.rank, facts.rank + 1))
        share = -(-total // facts.world_size)
        size = min(plan.micro_rows[stage], share)
        rounds = -(-share // size)
        # A rank without a row of its own takes the first one's shape.
        rows = stream.rows_numbered(np.arange(begin, end) if end > begin else np.zeros(1, np.int64))
        form = stream.format_of(stage.sequence_length)
        filler = filler_rows(rounds * size - (end - begin), form, like=rows)
        rows = join_rows([rows, filler]) if end > begin else filler
        return self.objectives(VALIDATION_SEED, stage.sequence_length).prepare_every(rows, rounds)


def open_sources(config: RunConfig) -> list[Source]:
    """The corpora of a run, checked against its model.

    Raises:
        UserError: no corpus there, damaged, named twice, or a tokenizer that does not fit the model.
    """
    sources: list[Source] = []
    for entry in corpora_of(config):
        files = files_at(entry.corpus, config.data.cache)
        manifest = read_manifest(files)
        check_tokenizer(files, manifest)
        if config.model.vocab_size is not None and config.model.vocab_size < manifest.vocab_size:
            raise UserError(
                f"model.vocab_size: {config.model.vocab_size} is smaller than the tokenizer of corpus {entry.corpus} "
                f"({manifest.vocab_size} ids); leave it out or set it to at least {manifest.vocab_size}."
            )
        for other in sources:
            if other.manifest.fingerprint == manifest.fingerprint:
                raise UserError(
                    f"data.mixture: {entry.corpus} and {other.files.location} are the same corpus: each document would "
                    "be read twice an epoch. Name it once, with one weight."
                )
        sources.append(Source(files, manifest, entry.weight, entry.epochs))
    return sources


def open_streams(config: RunConfig) -> Streams:
    """Open the corpora for this run.

    Raises:
        UserError: no corpus there, damaged, an empty split, a tokenizer that does not fit the model, the objective or
            a reverse complement, or too few rows for the steps of the run.
    """
    all_stages = stages_of(config)
    stages = all_stages.until(config.train.steps)
    for stage in all_stages.all[len(stages.all) :]:
        get_logger("data").warning("the stage %s begins after the run's last step (train.steps)", stage)
    sources = open_sources(config)
    exclusions = read_exclusions(config.data.exclude)
    streams = Streams(config, stages, sources, exclusions, _reverse_complement(config, sources[0]))
    check_form(config, streams.manifest.special_ids)
    streams.train.check_rows(config.train.steps)
    for sequence_length in {stage.sequence_length for stage in streams.stages.all}:
        streams.validation(sequence_length)  # what is wrong with it is said now, not at the first evaluation
    return streams


def _reverse_complement(config: RunConfig, source: Source) -> ReverseComplement | None:
    """All corpora have the tokenizer of this one."""
    if config.data.reverse_complement == 0:
        return None
    tokenizer = source.files.tokenizer_directory() / "tokenizer.json"
    return ReverseComplement(config.data.reverse_complement, config.seed, read_complements(tokenizer, source.manifest))
