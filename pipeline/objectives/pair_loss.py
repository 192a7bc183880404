"""The loss of masked tokens and of sentence pairs, in one forward pass.

Letters: R rows, S sequence length, P places for predictions, K places for pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.models.head_loss import IGNORED, hits_of
from pipeline.models.packed import packed_head_loss_and_pair_logits
from pipeline.objectives.loss import VOCABULARY_TENSORS, PackedLoss, with_hits
from pipeline.objectives.terms import Term


def packed_pair_loss_sums(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    token_type_ids: Tensor,
    pair_slots: Tensor,
    pair_labels: Tensor,
    max_seqlen: int,
) -> tuple[Tensor, Tensor]:
    """Sums of the cross-entropies of a micro-batch's tokens and of its pairs, each in fp32 (fp64 for an fp64 model).

    Args:
        model: from ``build_model`` with a head for pairs.
        input_ids, position_ids, token_type_ids: int64 (R, S).
        cu_seqlens: int32, over the R * S flattened tokens.
        prediction_positions: int64 (P,), into the flattened tokens.
        labels: int64 (P,); -100 is not counted.
        pair_slots: int64 (K,), into ``prediction_positions``: the first tokens of segments.
        pair_labels: int64 (K,), 0 or 1; -100 is not counted.
        max_seqlen: bound of the segment lengths, a constant of the run.
    """
    loss, logits = _loss_and_pair_logits(
        model, input_ids, position_ids, cu_seqlens, prediction_positions, labels, token_type_ids, pair_slots, max_seqlen
    )
    return loss, _pair_loss(logits, pair_labels)


def packed_pair_loss_and_hits(model: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
    """:func:`packed_pair_loss_sums`, and the hits of tokens and of pairs, each int64 (2,)."""
    *of_rows, pair_labels, max_seqlen = arguments
    (loss, logits), hits = with_hits(_loss_and_pair_logits, model, *of_rows, max_seqlen)
    return loss, _pair_loss(logits, pair_labels), hits, hits_of(logits.argmax(-1), pair_labels)


def _loss_and_pair_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    token_type_ids: Tensor,
    pair_slots: Tensor,
    max_seqlen: int,
) -> tuple[Tensor, Tensor]:
    return packed_head_loss_and_pair_logits(
        model,
        input_ids.view(1, -1),
        position_ids.view(1, -1),
        token_type_ids.view(1, -1),
        cu_seqlens,
        max_seqlen,
        prediction_positions,
        labels,
        pair_slots,
    )


def _pair_loss(logits: Tensor, pair_labels: Tensor) -> Tensor:
    exact = torch.promote_types(logits.dtype, torch.float32)
    return cross_entropy(logits.to(exact), pair_labels, ignore_index=IGNORED, reduction="sum")


def pair_loss(name: str) -> PackedLoss:
    """Both terms with the weight 1, as BERT and ALBERT add them up.

    Args:
        name: of the term for pairs.
    """
    terms = (Term("mlm", "predictions"), Term(name, "pairs"))
    tensors = (*VOCABULARY_TENSORS, "token_type_ids", "pair_slots", "pair_labels")
    shares = ("accuracy_mlm", f"accuracy_{name}")
    return PackedLoss(terms, packed_pair_loss_sums, tensors, shares, packed_pair_loss_and_hits)
