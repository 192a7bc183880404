"""The stream: rows of any step, as a pure function of (corpora, settings, seed, step).

Letters: R rows, S sequence length, K segments, P pieces, G rows of a step (global batch), W world size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.stages import Stages
from pipeline.data.exclusion import Exclusions
from pipeline.data.gather import gather_rows, split_rows
from pipeline.data.look_ahead import LookAhead
from pipeline.data.order import rank_slice, slot_order
from pipeline.data.packing import check_context, find_packing
from pipeline.data.phase import Phase, PhasePlaces
from pipeline.data.pieces import is_kept
from pipeline.data.planned import Planned, check_blocks, plan_rows
from pipeline.data.row_format import RowKind, row_format
from pipeline.data.rows import RowFormat, Rows
from pipeline.data.source import OpenSource, Source
from pipeline.shards.files import CorpusFiles, corpus_files
from pipeline.shards.manifest import read_manifest

_SPARE_SHARDS = 32
"""Open beside those that lanes are in: some have just been left."""


@dataclass(frozen=True)
class StreamSettings:
    """Everything but the corpora that decides which rows a step has."""

    packing: str
    """Name of a packing."""

    kind: RowKind
    """What stands around a piece of a document: ``bert`` or ``gpt``."""

    stages: Stages
    """G and S of every step."""

    seed: int
    """Of the run."""

    open_shards: int = 256
    """Shards mixed at once, over all sources: lanes x shards a window."""

    exponent: float = 1.0
    """Shares of the sources are weight^exponent, normalised."""

    context_tokens: int = 0
    """Tokens of the piece before with which every piece but the first of a document begins."""


class RowStream:
    """Rows of one split of one corpus or of a mixture, step by step, for ever.

    It holds caches but no state: ``rows(step)`` is the same in a fresh object, in any order of steps, for every world
    size (the slices of all ranks, joined, are the rows of the step), in any process. Steps are counted from 0.

    Args:
        sources: at least one; all with the same tokenizer.
        split: ``"train"`` or ``"validation"``.
        words: fill ``Rows.word_starts``.
        sentences: fill ``Rows.sentence_starts``.
        exclusions: documents to leave out.

    Raises:
        UserError: no such split, no rows in it, corpora of several tokenizers, a setting out of range, a damaged index.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        split: str,
        settings: StreamSettings,
        *,
        words: bool = False,
        sentences: bool = False,
        exclusions: Exclusions | None = None,
    ) -> None:
        smallest = min(stage.global_batch_size for stage in settings.stages.all)
        if smallest < 1 or settings.open_shards < 1:
            raise UserError(
                f"train.global_batch_size is {smallest} and data.open_shards is {settings.open_shards}; "
                "both must be at least 1."
            )
        _check_tokenizers(sources)
        self.settings = settings
        self.stages = settings.stages
        self.split = split
        self.words = words
        self.sentences = sentences
        self.packing = find_packing(settings.packing)
        check_context(self.packing, settings.context_tokens)
        self.sources = [OpenSource(source, number, split, _SPARE_SHARDS) for number, source in enumerate(sources)]
        if words:
            _check_words(self.sources)
        if sentences:
            _check_sentences(self.sources)
        self._first_documents = np.cumsum([0, *(int(source.table.documents.sum()) for source in self.sources)])
        self._exclusions = exclusions or Exclusions({})
        self._open()

    def _open(self) -> None:
        self.phases: list[Phase] = []
        settings = self.settings
        for stages in self.stages.phases():
            phase = Phase(
                len(self.phases),
                self.sources,
                stages,
                packing=self.packing,
                row_format=self.format_of(stages[0].sequence_length),
                open_shards=settings.open_shards,
                exponent=settings.exponent,
                seed=settings.seed,
                before=self.phases[-1] if self.phases else None,
            )
            self.phases.append(phase)
        self._share_open_shards()
        self._look_ahead = LookAhead(self)

    def _share_open_shards(self) -> None:
        """Let every source keep the shards open that its lanes are in: together, not each, some ``open_shards``."""
        for number, source in enumerate(self.sources):
            own = max(phase.windows[number].order.open_shards for phase in self.phases)
            source.shard.capacity = own + max(2, _SPARE_SHARDS // len(self.sources))
        self._exclusions.keep(sum(source.shard.capacity for source in self.sources))

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes start with empty caches."""
        return {name: value for name, value in self.__dict__.items() if name not in ("phases", "_look_ahead")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def format_of(self, sequence_length: int) -> RowFormat:
        """The rows of a stage of this sequence length."""
        return row_format(
            self.sources[0].manifest,
            self.settings.kind,
            sequence_length,
            pairs=self.packing.needs_sentences,
            context_tokens=self.settings.context_tokens,
        )

    def phase_of(self, step: int) -> Phase:
        """The phase that a step is in."""
        row = self.stages.first_row(step)
        return next(phase for phase in reversed(self.phases) if phase.first_row <= row)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch of every source, together, in the first phase."""
        return self.phases[0].num_rows

    @property
    def fill(self) -> float:
        """Share of an epoch's slots that hold text of the corpora for the first time (special tokens, padding and the
        context of cut documents do not), first phase."""
        slots = self.num_rows * self.phases[0].row_format.sequence_length
        return sum(source.num_tokens for source in self.sources) / slots

    def check_rows(self, steps: int) -> None:
        """Refuse more steps than a mixture whose sources all drop out has rows for.

        Raises:
            UserError: it has fewer.
        """
        last_row = self.phases[-1].last_row
        if last_row is not None and self.first_row(steps) > last_row:
            possible = self.stages.step_of_row(last_row)
            raise UserError(
                f"train.steps is {steps}, but every source of data.mixture has dropped out after step {possible}. "
                f"Set train.steps to at most {possible}, or raise `epochs` of a source or leave it out."
            )

    def source_epochs_before(self, step: int) -> list[float]:
        """Epochs of every source that the steps before ``step`` read, (C,)."""
        phase = self.phase_of(max(step - 1, 0))
        given = phase.mixture.given_before(self.first_row(step) - phase.first_row).tolist()
        return [windows.order.epochs_at(count) for windows, count in zip(phase.windows, given, strict=True)]

    def epochs_before(self, step: int) -> float:
        """Epochs of the whole mixture, by tokens, that the steps before ``step`` read."""
        tokens = [source.num_tokens for source in self.sources]
        epochs = self.source_epochs_before(step)
        return sum(count * number for count, number in zip(tokens, epochs, strict=True)) / sum(tokens)

    def first_row(self, step: int) -> int:
        """Run-wide number of the step's first row."""
        return self.stages.first_row(step)

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        """A rank's rows of a step, in slot order.

        Raises:
            UserError: more ranks than rows, a damaged shard, or a mixture that has come to its end.
        """
        return self.rows_of_steps([step], rank, world_size)[0]

    def rows_of_steps(self, steps: Sequence[int], rank: int = 0, world_size: int = 1) -> list[Rows]:
        """As :meth:`rows` for several steps, planned and gathered together: faster than one by one."""
        found: list[Rows] = []
        for alike in self.alike(steps):
            rows = self.joined_rows(alike, rank, world_size)
            found += split_rows(rows, [len(rows.row_numbers) // len(alike)] * len(alike))
        return found

    def alike(self, steps: Sequence[int]) -> list[list[int]]:
        """Steps in runs of one stage, whose batches have one shape."""
        return [list(of_stage) for _, of_stage in groupby(steps, key=self.stages.of_step)]

    def joined_rows(self, steps: Sequence[int], rank: int = 0, world_size: int = 1) -> Rows:
        """As :meth:`rows` for several steps of one stage, step after step, equally many each."""
        return self._gather(self.plan(steps, rank, world_size), self.phase_of(steps[0]))

    def rows_numbered(self, numbers: NDArray[np.int64]) -> Rows:
        """Rows by their run-wide numbers, int64 (R,), all of one phase, in that order."""
        phase = self.phase_of(self.stages.step_of_row(int(numbers[0])))
        found = phase.places(numbers)
        self._look_ahead.fetch_indexes(phase, found)
        return self._gather(plan_rows(numbers, found, phase, step=-1), phase)

    def plan(self, steps: Sequence[int], rank: int = 0, world_size: int = 1) -> Planned:
        """The plan of a rank's rows of steps of one stage, from indexes alone."""
        numbers, found = self.slots(steps, rank, world_size)
        phase = self.phase_of(steps[0])
        self._look_ahead.fetch_indexes(phase, found)
        planned = plan_rows(numbers, found, phase, steps[-1])
        self._look_ahead.after(steps, rank, world_size)
        return planned

    def slots(self, steps: Sequence[int], rank: int = 0, world_size: int = 1) -> tuple[NDArray[np.int64], PhasePlaces]:
        """Run-wide numbers of a rank's rows of steps of one stage, in slot order, (R,), and where they stand."""
        size = self.stages.of_step(steps[0]).global_batch_size
        begin, end = rank_slice(size, rank, world_size)
        first_rows = np.array([self.first_row(step) for step in steps])
        numbers = first_rows[:, None] + np.arange(size)  # (steps, G)
        found = self.phase_of(steps[0]).places(numbers.reshape(-1))
        lane, lanes = (column.reshape(numbers.shape) for column in (found.places.lane, found.lanes))
        order = slot_order(lane, lanes)[:, begin:end] + np.arange(len(steps))[:, None] * size
        return numbers.reshape(-1)[order.reshape(-1)], found.taken(order.reshape(-1))

    def _gather(self, planned: Planned, phase: Phase) -> Rows:
        names, shard_of_row = planned.shards()
        self._look_ahead.fetch_now(names)
        shards = [self.sources[source].shard(shard) for source, shard in names]
        if self._exclusions:
            planned = self._without_excluded(planned)
        check_blocks(planned, shards, shard_of_row)
        first_document = np.array(
            [self._first_documents[source] + self.sources[source].first_document[shard] for source, shard in names],
            np.int64,
        )
        return gather_rows(
            planned.pieces,
            planned.counts,
            [shard.tokens for shard in shards],
            shard_of_row,
            row_numbers=planned.numbers,
            epoch=planned.epoch,
            shard=planned.shard,
            source=planned.source,
            first_document=first_document[shard_of_row],
            row_format=phase.row_format,
            words=shards if self.words else None,
            sentences=[shard.sentence_items for shard in shards] if self.sentences else None,
        )

    def _without_excluded(self, planned: Planned) -> Planned:
        """The same rows without the pieces of documents that are left out."""
        kept = np.ones(len(planned.pieces), np.bool_)
        ends = np.cumsum(planned.counts)
        sources, shards, numbers = planned.source.tolist(), planned.shard.tolist(), planned.numbers.tolist()
        for row, (source, shard) in enumerate(zip(sources, shards, strict=True)):
            first_step = self.first_steps_without(source, shard)
            if first_step is not None:
                own = slice(ends[row] - planned.counts[row], ends[row])
                kept[own] = is_kept(planned.pieces[own], first_step <= self.stages.step_of_row(numbers[row]))
        row_of_piece = np.repeat(np.arange(len(ends)), planned.counts)  # (P,)
        counts = np.bincount(row_of_piece[kept], minlength=len(ends))
        return replace(planned, pieces=planned.pieces[kept], counts=counts)

    def first_steps_without(self, source: int, shard: int) -> NDArray[np.int64] | None:
        """First step without every document of a shard, (D,), ``exclusion.NEVER`` where it stays; None if all stay."""
        return self._exclusions.of_shard(self.sources[source], shard) if self._exclusions else None

    def document_ids(self, rows: Rows) -> list[str]:
        """Name of every segment's document, K of them, aligned with the segments of ``rows``."""
        return self._names(rows, rows.document)

    def second_document_ids(self, rows: Rows) -> list[str]:
        """Pairs: name of the document of every segment's second part, K of them; empty where it has none."""
        assert rows.second_document is not None
        return self._names(rows, rows.second_document)

    def _names(self, rows: Rows, document: NDArray[np.int64]) -> list[str]:
        names = [""] * len(document)
        source, shard = rows.source[rows.segment_row], rows.shard[rows.segment_row]  # (K,)
        for of_source, number in np.unique(np.stack([source, shard], axis=1), axis=0).tolist():
            opened = self.sources[of_source]
            segments = np.flatnonzero((source == of_source) & (shard == number) & (document >= 0))
            first = self._first_documents[of_source] + opened.first_document[number]
            for segment, name in zip(segments.tolist(), opened.names(number, document[segments] - first), strict=True):
                names[segment] = name
        return names

    def settings_before(self, step: int) -> dict[str, Any]:
        """Everything that decides which rows the steps before ``step`` have, as plain JSON values.

        Stages and exclusions count up to ``step``, so that those ahead may be changed. World size, micro-batch,
        workers, caches, and where the corpora lie are not in it.
        """
        settings, form = self.settings, self.phases[0].row_format
        return {
            "seed": settings.seed,
            "split": self.split,
            "packing": [self.packing.name, self.packing.version],
            "kind": settings.kind,
            "context_tokens": settings.context_tokens,
            "special_ids": [*form.begin_ids, *form.middle_ids, *form.end_ids, form.pad_id],
            "open_shards": settings.open_shards,
            "sources": [
                [source.manifest.fingerprint, float(share), source.epochs]
                for source, share in zip(self.sources, self.phases[0].row_shares, strict=True)
            ],
            "stages": [
                [stage.first_step, stage.global_batch_size, stage.sequence_length, stage.lane_rows]
                for stage in self.stages.begun(step)
            ],
            "exclusions": self._exclusions.fingerprint(step),
        }


def _check_tokenizers(sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources[1:]:
        if source.manifest.tokenizer_fingerprint != first.manifest.tokenizer_fingerprint:
            raise UserError(
                f"data.mixture: {source.files.location} has tokenizer {source.manifest.tokenizer_fingerprint[:12]}, "
                f"{first.files.location} has {first.manifest.tokenizer_fingerprint[:12]}: their token ids mean "
                "different text. Build both with one tokenizer (`tokenizer.path` in the corpus config)."
            )


def _check_words(sources: Sequence[OpenSource]) -> None:
    for source in sources:
        if not source.manifest.has_words:
            raise UserError(
                f"objective.masking masks whole words, and the corpus {source.files.location} does not say where words "
                "begin. Build it from text with `shards.words: true` (an import knows the words of WordPiece only), or "
                "set objective.masking to token."
            )


def _check_sentences(sources: Sequence[OpenSource]) -> None:
    for source in sources:
        if not source.manifest.has_sentences:
            raise UserError(
                f"objective.permute_sentences: the corpus {source.files.location} does not say where sentences begin. "
                "Build it from text with `shards.sentences: true`, or set it to 0."
            )


def open_stream(
    location: str | Path | CorpusFiles,
    split: str = "train",
    *,
    kind: RowKind,
    sequence_length: int,
    global_batch_size: int,
    packing: str = "best_fit",
    open_shards: int = 256,
    seed: int = 0,
    words: bool = False,
    sentences: bool = False,
    context_tokens: int = 0,
) -> RowStream:
    """The stream of one corpus with one shape of batch.

    Args:
        location: directory or URL of the corpus.
    """
    files = location if isinstance(location, CorpusFiles) else corpus_files(location)
    stages = Stages.single(global_batch_size, sequence_length)
    settings = StreamSettings(packing, kind, stages, seed, open_shards, context_tokens=context_tokens)
    return RowStream([Source(files, read_manifest(files))], split, settings, words=words, sentences=sentences)
