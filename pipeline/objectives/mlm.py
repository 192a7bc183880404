"""Masked language modelling (Devlin et al. 2018) without sentence pairs, as RoBERTa trains (Liu et al. 2019)."""

from __future__ import annotations

import numpy as np

from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.layout import Capacity, Predictions, is_real
from pipeline.objectives.masking import MaskingSettings, corrupt, num_predictions
from pipeline.objectives.objective import Objective


class MaskedLanguageModel(Objective):
    """Predict an exact share of the tokens of every row; see :mod:`pipeline.objectives.masking`."""

    name = "mlm"
    row_kind = "bert"

    def __init__(
        self, masking: MaskingSettings, row_format: RowFormat, segments_per_row: int, digests: bool = False
    ) -> None:
        most_maskable = np.array(row_format.sequence_length - row_format.overhead)
        super().__init__(Capacity(int(num_predictions(most_maskable, masking.rate)), segments_per_row), digests)
        self.masking = masking

    def predictions(self, rows: Rows) -> Predictions:
        input_ids, indices = corrupt(rows.tokens, rows.row_numbers, is_real(rows), self.masking)
        return Predictions(input_ids, indices, rows.tokens.ravel()[indices])
