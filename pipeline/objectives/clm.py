"""Causal language modelling: every token of a segment but the last predicts the next one (Radford et al. 2019)."""

from __future__ import annotations

import numpy as np

from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.layout import Capacity, Predictions, has_next
from pipeline.objectives.objective import Objective


class CausalLanguageModel(Objective):
    """Nothing is corrupted; no prediction crosses the border of a segment."""

    name = "clm"
    row_kind = "gpt"

    def __init__(self, row_format: RowFormat, segments_per_row: int, digests: bool = False) -> None:
        super().__init__(Capacity(row_format.sequence_length, segments_per_row), digests)

    def predictions(self, rows: Rows) -> Predictions:
        indices = np.flatnonzero(has_next(rows))  # P
        return Predictions(rows.tokens, indices, rows.tokens.ravel()[indices + 1])
