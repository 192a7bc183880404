"""What every objective is: a kind of row, a corruption of rows, and the loss of the batches made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.digest import row_digests
from pipeline.data.rows import Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.layout import Capacity, Predictions, make_batches

RowKind = Literal["bert", "gpt"]


class Objective(ABC):
    """One training objective over packed rows. Letters: R rows, S sequence length, P predictions."""

    name: ClassVar[str]
    planner: ClassVar[str] = "single"
    """What it asks of the planner: every segment is one piece of one document."""

    row_kind: ClassVar[RowKind]
    """Which special tokens its rows have."""

    def __init__(self, capacity: Capacity, digests: bool) -> None:
        self.capacity = capacity
        self.digests = digests

    @abstractmethod
    def predictions(self, rows: Rows) -> Predictions:
        """Inputs, predicting positions and labels of rows: a pure function of their tokens and row numbers."""

    def labels_of(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs (R, S) and, at every position that predicts, the id it is to predict; -100 elsewhere (R, S)."""
        return self._dense(self.predictions(rows))

    def prepare(self, rows: Rows, num_micro_batches: int, step: int = -1) -> list[Batch]:
        """The micro-batches of one rank for one optimizer step, equal in size and shape, in the order of the rows.

        Raises:
            ValueError: the rows cannot be split evenly.
        """
        predictions = self.predictions(rows)
        digests = row_digests(rows, *self._dense(predictions)) if self.digests else None
        return make_batches(rows, predictions, self.capacity, num_micro_batches, step, digests)

    @staticmethod
    def _dense(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return predictions.input_ids, predictions.dense_labels()
