"""Masked language modelling (Devlin et al. 2018) without sentence pairs, as RoBERTa trains (Liu et al. 2019)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

from pipeline.base.errors import UserError
from pipeline.config.objective import ObjectiveConfig
from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.layout import Capacity
from pipeline.objectives.loss import vocabulary_loss
from pipeline.objectives.masking import MaskingSettings, corrupt, masking_settings, num_predictions
from pipeline.objectives.objective import Objective, Vocabulary
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

    @classmethod
    def of(
        cls, config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
    ) -> Self:
        mask_id = vocabulary.special_ids.get("mask")
        if mask_id is None:
            raise UserError(
                f"objective.name: {cls.name} needs a mask token and the tokenizer of the corpus has none: build the "
                "corpus with a tokenizer of style bert or roberta, or train a causal model (objective.name: clm, "
                "model.family: gpt2)."
            )
        masking = masking_settings(
            config,
            seed=seed,
            mask_id=mask_id,
            vocab_size=vocabulary.vocab_size,
            special_ids={*vocabulary.all_special_ids, row_format.pad_id},
        )
        most_maskable = row_format.sequence_length - len(row_format.begin_ids) - len(row_format.end_ids)
        return cls(masking, Capacity(num_predictions(most_maskable, config.mask_rate), segments_per_row))

    def predictions(self, rows: Rows) -> Predictions:
        predictions = corrupt(rows.tokens, rows.row_numbers, rows.word_starts, self.masking)
        return replace(predictions, with_pairs=True) if self.with_pairs else predictions
