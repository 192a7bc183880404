"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from pipeline.base.errors import UserError
from pipeline.config.run import ObjectiveConfig, ObjectiveName, Packing
from pipeline.data.packing import max_segments_per_row
from pipeline.data.rows import RowFormat
from pipeline.objectives.clm import CausalLanguageModel
from pipeline.objectives.layout import Capacity
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.masking import masking_settings, num_predictions
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.mlm_nsp import MaskedLanguageModelWithNextSentence
from pipeline.objectives.mlm_sop import MaskedLanguageModelWithSentenceOrder
from pipeline.objectives.objective import Objective, RowKind
from pipeline.objectives.rtd import ReplacedTokenDetection


class Vocabulary(Protocol):
    """What objectives read of a corpus manifest."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> Mapping[str, int | None]: ...

    @property
    def all_special_ids(self) -> Sequence[int]: ...


_MASKED: Final[Mapping[str, type[MaskedLanguageModel]]] = {
    objective.name: objective
    for objective in (
        MaskedLanguageModel,
        MaskedLanguageModelWithNextSentence,
        MaskedLanguageModelWithSentenceOrder,
        ReplacedTokenDetection,
    )
}

_OBJECTIVES: Final[Mapping[str, type[Objective]]] = {**_MASKED, CausalLanguageModel.name: CausalLanguageModel}


def row_kind(name: ObjectiveName) -> RowKind:
    """Kind of row that an objective reads: the planner asks before the objective can be made."""
    return _OBJECTIVES[name].row_kind


def packed_loss(config: ObjectiveConfig) -> PackedLoss:
    """What an objective minimises: the model asks before any row is read."""
    loss = _OBJECTIVES[config.name].loss
    weights = {"rtd": config.discriminator_weight}
    terms = tuple(replace(term, weight=weights.get(term.name, term.weight)) for term in loss.terms)
    return replace(loss, terms=terms)


def make_objective(
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    row_format: RowFormat,
    seed: int,
    *,
    packing: Packing,
    cross_document_attention: bool = False,
    documents_per_token: float | None = None,
    window: int | None = None,
) -> Objective:
    """The objective named in the config.

    Args:
        vocabulary: the manifest of the corpus.
        packing: it bounds the segments of a row, and with them the length of ``cu_seqlens``.
        cross_document_attention: see :class:`pipeline.objectives.objective.Objective`.
        documents_per_token: of the corpus, if it is known: how many segments a row has on average follows from it.
        window: how far a token sees in local layers of the model, if it has such.

    Raises:
        UserError: the tokenizer has no mask token where one is needed.
    """
    segments = 1 if cross_document_attention else max_segments_per_row(row_format, packing)
    mean = None
    if documents_per_token is not None:
        # A row holds the documents that begin in it, the rest of one that began before, and its padded tail.
        mean = documents_per_token * row_format.sequence_length + 2
    # The padded tail of a row is a segment too.
    make = _MAKERS[config.name](config, vocabulary, row_format, seed, segments + 1)
    objective = make(cross_document_attention=cross_document_attention)
    objective.capacity = replace(
        objective.capacity, mean_segments_per_row=mean, window=-1 if window is None else window
    )
    return objective


def _mlm(
    config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
) -> Callable[..., Objective]:
    mask_id = vocabulary.special_ids.get("mask")
    if mask_id is None:
        raise UserError(
            f"objective.name: {config.name} needs a mask token and the tokenizer of the corpus has none: build the "
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
    most_predictions = num_predictions(most_maskable, config.mask_rate)
    return partial(_MASKED[config.name], masking, Capacity(most_predictions, segments_per_row))


def _clm(
    config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
) -> Callable[..., Objective]:
    return partial(CausalLanguageModel, Capacity(row_format.sequence_length, segments_per_row))


_MAKERS: Final[Mapping[str, Callable[..., Callable[..., Objective]]]] = {
    **dict.fromkeys(_MASKED, _mlm),
    "clm": _clm,
}
