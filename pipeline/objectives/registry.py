"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from pipeline.base.errors import UserError
from pipeline.config.run import ObjectiveConfig, ObjectiveName, Packing
from pipeline.data.packing import max_segments_per_row
from pipeline.data.rows import RowFormat
from pipeline.objectives.clm import CausalLanguageModel
from pipeline.objectives.masking import masking_settings
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.objective import Objective, RowKind


class Vocabulary(Protocol):
    """What objectives read of a corpus manifest."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> Mapping[str, int | None]: ...

    @property
    def all_special_ids(self) -> Sequence[int]: ...


_ROW_KINDS: Final[Mapping[str, RowKind]] = {
    objective.name: objective.row_kind for objective in (MaskedLanguageModel, CausalLanguageModel)
}


def row_kind(name: ObjectiveName) -> RowKind:
    """Kind of row that an objective reads: the planner asks before the objective can be made."""
    return _ROW_KINDS[name]


def make_objective(
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    row_format: RowFormat,
    seed: int,
    *,
    packing: Packing,
    digests: bool = False,
) -> Objective:
    """The objective named in the config.

    Args:
        vocabulary: the manifest of the corpus.
        packing: it bounds the segments of a row, and with them the length of ``cu_seqlens``.
        digests: let ``prepare`` compute the digest of every row, which costs more than all the rest of it.

    Raises:
        UserError: the tokenizer has no mask token where one is needed.
    """
    # The padded tail of a row is a segment too.
    segments_per_row = max_segments_per_row(row_format, packing) + 1
    return _MAKERS[config.name](config, vocabulary, row_format, seed, segments_per_row, digests)


def _make_mlm(
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    row_format: RowFormat,
    seed: int,
    segments_per_row: int,
    digests: bool,
) -> Objective:
    mask_id = vocabulary.special_ids.get("mask")
    if mask_id is None:
        raise UserError(
            "objective.name: mlm needs a mask token and the tokenizer of the corpus has none: build the corpus with a "
            "tokenizer of style bert or roberta, or train a causal model (objective.name: clm, model.family: gpt2)."
        )
    masking = masking_settings(
        seed=seed,
        rate=config.mask_rate,
        mask_token_share=config.mask_token_share,
        random_token_share=config.random_token_share,
        mask_id=mask_id,
        vocab_size=vocabulary.vocab_size,
        special_ids=vocabulary.all_special_ids,
    )
    return MaskedLanguageModel(masking, row_format, segments_per_row, digests)


def _make_clm(
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
    row_format: RowFormat,
    seed: int,
    segments_per_row: int,
    digests: bool,
) -> Objective:
    return CausalLanguageModel(row_format, segments_per_row, digests)


_MAKERS: Final[Mapping[str, Callable[..., Objective]]] = {"mlm": _make_mlm, "clm": _make_clm}
