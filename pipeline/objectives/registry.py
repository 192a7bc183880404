"""Objectives by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pipeline.config.run import ObjectiveConfig, ObjectiveName, Packing
from pipeline.data.packing import max_segments_per_row
from pipeline.data.rows import RowFormat
from pipeline.objectives.clm import CausalLanguageModel
from pipeline.objectives.denoise import Denoising
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.mlm_nsp import MaskedLanguageModelWithNextSentence
from pipeline.objectives.mlm_sop import MaskedLanguageModelWithSentenceOrder
from pipeline.objectives.objective import Objective, RowKind, Vocabulary
from pipeline.objectives.padded_loss import as_padded
from pipeline.objectives.rtd import ReplacedTokenDetection

_OBJECTIVES: Final[Mapping[str, type[Objective]]] = {
    objective.name: objective
    for objective in (
        MaskedLanguageModel,
        MaskedLanguageModelWithNextSentence,
        MaskedLanguageModelWithSentenceOrder,
        ReplacedTokenDetection,
        CausalLanguageModel,
        Denoising,
    )
}


def row_kind(name: ObjectiveName) -> RowKind:
    """Kind of row that an objective reads: the planner asks before the objective can be made."""
    return _OBJECTIVES[name].row_kind


def packed_loss(config: ObjectiveConfig, padded: bool = False) -> PackedLoss:
    """What an objective minimises: the model asks before any row is read.

    Args:
        padded: the model runs padded.
    """
    loss = _OBJECTIVES[config.name].loss
    loss = as_padded(loss) if padded else loss
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
    padded: bool = False,
) -> Objective:
    """The objective named in the config.

    Args:
        vocabulary: the manifest of the corpus.
        packing: it bounds the segments of a row, and with them the length of ``cu_seqlens``.
        cross_document_attention: see :class:`pipeline.objectives.objective.Objective`.
        documents_per_token: of the corpus, if it is known: how many segments a row has on average follows from it.
        window: how far a token sees in local layers of the model, if it has such.
        padded: the model runs padded: batches say what is no padding.

    Raises:
        UserError: the tokenizer has no mask token where one is needed.
    """
    segments = 1 if cross_document_attention else max_segments_per_row(row_format, packing)
    mean = None
    if documents_per_token is not None:
        # A row holds the documents that begin in it, the rest of one that began before, and its padded tail.
        mean = documents_per_token * row_format.sequence_length + 2
    # The padded tail of a row is a segment too.
    objective = _OBJECTIVES[config.name].of(config, vocabulary, row_format, seed, segments + 1)
    objective.marks_padding = objective.marks_padding or padded
    objective.cross_document_attention = cross_document_attention
    objective.capacity = replace(
        objective.capacity, mean_segments_per_row=mean, window=-1 if window is None else window
    )
    return objective
