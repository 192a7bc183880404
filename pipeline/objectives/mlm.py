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
from pipeline.objectives.static_masking import corrupt_documents, most_static_predictions


class MaskedLanguageModel(Objective):
    """Predict an exact share of the tokens of every row (:mod:`pipeline.objectives.masking`), or, with copies of masks,
    the tokens of every document that its copy says (:mod:`pipeline.objectives.static_masking`)."""

    name = "mlm"
    row_kind = "bert"
    loss = vocabulary_loss("mlm")

    with_pairs: ClassVar[bool] = False
    """Whether it also learns what the parts of a segment are to each other."""

    def __init__(
        self,
        masking: MaskingSettings,
        capacity: Capacity,
        num_begin_ids: int,
        cross_document_attention: bool = False,
    ) -> None:
        super().__init__(capacity, cross_document_attention)
        self.masking = masking
        self.num_begin_ids = num_begin_ids
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
        num_begin_ids = len(row_format.begin_ids)
        most_maskable = row_format.sequence_length - num_begin_ids - len(row_format.end_ids)
        most = num_predictions(most_maskable, config.mask_rate)
        if config.mask_copies is not None:
            most = most_static_predictions(row_format.sequence_length, config)
        return cls(masking, Capacity(most, segments_per_row), num_begin_ids)

    def predictions(self, rows: Rows) -> Predictions:
        if self.masking.config.mask_copies is None:
            predictions = corrupt(rows.tokens, rows.row_numbers, rows.word_starts, self.masking)
        else:
            predictions = corrupt_documents(rows, self.num_begin_ids, self.masking)
        return replace(predictions, with_pairs=True) if self.with_pairs else predictions
