"""Causal language modelling: every token of a segment but the last predicts the next one (Radford et al. 2019)."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.config.objective import ObjectiveConfig
from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.layout import Capacity, has_next
from pipeline.objectives.loss import vocabulary_loss
from pipeline.objectives.objective import Objective, Vocabulary
from pipeline.objectives.predictions import Predictions


class CausalLanguageModel(Objective):
    """Nothing is corrupted; no prediction crosses the border of a segment. What a segment repeats of the one before it
    in its document (``Rows.segment_context``) is read and not predicted again."""

    name = "clm"
    row_kind = "gpt"
    loss = vocabulary_loss("clm")

    @classmethod
    def of(
        cls, config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
    ) -> Self:
        return cls(Capacity(row_format.sequence_length, segments_per_row))

    def predictions(self, rows: Rows) -> Predictions:
        predicts = has_next(self.as_seen(rows))  # R S
        if rows.segment_context is not None:
            _leave_out_context(rows.segment_row, rows.segment_start, rows.segment_context, predicts)
        indices = np.flatnonzero(predicts)  # P
        tokens = rows.tokens.astype(np.int64)
        return Predictions(tokens, indices, tokens.ravel().take(indices + 1), predicts.sum(1, dtype=np.int64))


@kernel
def _leave_out_context(
    of_row: NDArray[np.integer],
    starts: NDArray[np.integer],
    contexts: NDArray[np.integer],
    predicts: NDArray[np.bool_],
) -> None:
    """Clear the last one, (R, S), where the next token is one of the first ``contexts`` of a segment, (K,) each."""
    for segment in range(len(of_row)):
        start, context = int(starts[segment]), int(contexts[segment])
        if context > 0:
            predicts[of_row[segment], max(start - 1, 0) : start + context - 1] = False
