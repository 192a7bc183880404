"""What an objective is to the rest: the kind of rows it reads, a pure corruption of rows, and the loss of the batches
made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config.objective import ObjectiveConfig
from pipeline.data.digest import row_digests
from pipeline.data.gather import split_rows
from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.layout import Capacity, as_one_segment, make_batches, with_digests, with_real_slots
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.predictions import Predictions

RowKind = Literal["bert", "gpt"]


class Vocabulary(Protocol):
    """What objectives read of a corpus manifest."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> Mapping[str, int | None]: ...

    @property
    def all_special_ids(self) -> Sequence[int]: ...


class Objective(ABC):
    """One training objective over packed rows. Letters: R rows, S sequence length, P predictions.

    Rows may be fillers, numbered below 0: nothing is predicted in them and they have no digest.

    Args:
        capacity: of a row.
        cross_document_attention: the segments of a row are one, for attention, positions and what follows what.
    """

    name: ClassVar[str]
    row_kind: ClassVar[RowKind]
    """Which special tokens its rows have."""

    loss: ClassVar[PackedLoss]
    """What it minimises."""

    needs_words: bool = False
    """Whether it reads ``Rows.word_starts``."""

    needs_sentences: bool = False
    """Whether it reads ``Rows.sentence_starts``."""

    marks_padding: bool = False
    """Whether its batches say which slots are no padding."""

    def __init__(self, capacity: Capacity, cross_document_attention: bool = False) -> None:
        self.capacity = capacity
        self.cross_document_attention = cross_document_attention

    @classmethod
    @abstractmethod
    def of(
        cls, config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
    ) -> Self:
        """The objective that a config describes.

        Args:
            vocabulary: the manifest of the corpus.
            segments_per_row: most segments of a row, its padded tail included.

        Raises:
            UserError: the tokenizer has not what it needs.
        """

    @abstractmethod
    def predictions(self, rows: Rows) -> Predictions:
        """Inputs, predicting positions and labels of rows: a pure function of their tokens, segments and numbers.

        The rows are as planned, every segment of a document by itself; what depends on which tokens see each other
        asks :meth:`as_seen`.
        """

    def labels_of(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs (R, S) and, at every position that predicts, the id it is to predict; -100 elsewhere (R, S)."""
        return self._dense(self.predictions(rows))

    def prepare(self, rows: Rows, num_micro_batches: int, step: int = -1, digests: bool = False) -> list[Batch]:
        """The micro-batches of one rank for one optimizer step, equal in size and shape, in the order of the rows.

        Args:
            digests: compute the digest of every row, which costs more than all the rest.

        Raises:
            ValueError: the rows cannot be split evenly.
        """
        return self.prepare_steps(rows, num_micro_batches, [step], [step] if digests else [])[0]

    def prepare_steps(
        self, rows: Rows, num_micro_batches: int, steps: Sequence[int], digested: Collection[int] = ()
    ) -> list[list[Batch]]:
        """As :meth:`prepare` for several steps at once, which costs far less than one by one.

        Args:
            rows: of all steps, equally many each, step after step.
            num_micro_batches: of one step.
            digested: the steps whose rows are digested.
        """
        predictions = self.predictions(rows)
        batches = make_batches(self.as_seen(rows), predictions, self.capacity, num_micro_batches, steps)
        if self.marks_padding:
            batches = with_real_slots(batches, rows)
        if digested:
            self._digest(batches, rows, steps, digested, self._dense(predictions))
        return batches

    @staticmethod
    def _digest(
        batches: list[list[Batch]],
        rows: Rows,
        steps: Sequence[int],
        digested: Collection[int],
        dense: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> None:
        """Give the micro-batches of some steps the digests of their rows.

        Args:
            dense: of all rows, as :meth:`labels_of`.
        """
        size = len(rows.row_numbers) // len(steps)
        for number, (step, own) in enumerate(zip(steps, split_rows(rows, [size] * len(steps)), strict=True)):
            if step in digested:
                part = slice(number * size, (number + 1) * size)
                digests = row_digests(own, *(cells[part] for cells in dense))
                batches[number] = with_digests(batches[number], digests)

    def as_seen(self, rows: Rows) -> Rows:
        """The rows with segments of tokens that see each other."""
        return as_one_segment(rows) if self.cross_document_attention else rows

    @staticmethod
    def _dense(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return predictions.input_ids, predictions.dense_labels()
