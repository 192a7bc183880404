"""Masked language modelling (Devlin et al. 2018) without sentence pairs, as RoBERTa trains (Liu et al. 2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pipeline.data.rows import Rows
from pipeline.objectives.layout import Capacity
from pipeline.objectives.loss import vocabulary_loss
from pipeline.objectives.masking import MaskingSettings, corrupt
from pipeline.objectives.objective import Objective
from pipeline.objectives.predictions import Predictions


class MaskedLanguageModel(Objective):
    """Predict an exact share of the tokens of every row; see :mod:`pipeline.objectives.masking`."""

    name = "mlm"
    row_kind = "bert"
    loss = vocabulary_loss("mlm")

    with_pairs: ClassVar[bool] = False
    """Whether it also learns what the parts of a segment are to each other."""

    def __init__(
        self,
        masking: MaskingSettings,
        capacity: Capacity,
        cross_document_attention: bool = False,
    ) -> None:
        super().__init__(capacity, cross_document_attention)
        self.masking = masking
        self.needs_words = masking.config.masking != "token"

    def predictions(self, rows: Rows) -> Predictions:
        predictions = corrupt(rows.tokens, rows.row_numbers, rows.word_starts, self.masking)
        return replace(predictions, with_pairs=True) if self.with_pairs else predictions
