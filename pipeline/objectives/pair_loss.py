"""The loss of masked tokens and of sentence pairs, in one forward pass.

Letters: R rows, S sequence length, P places for predictions, K places for pairs.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.packed import packed_head_and_pair_loss
from pipeline.objectives.loss import VOCABULARY_TENSORS, PackedLoss
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
    return packed_head_and_pair_loss(
        model,
        input_ids.view(1, -1),
        position_ids.view(1, -1),
        token_type_ids.view(1, -1),
        cu_seqlens,
        max_seqlen,
        prediction_positions,
        labels,
        pair_slots,
        pair_labels,
    )


def pair_loss(name: str) -> PackedLoss:
    """Both terms with the weight 1, as BERT and ALBERT add them up.

    Args:
        name: of the term for pairs.
    """
    terms = (Term("mlm", "predictions"), Term(name, "pairs"))
    tensors = (*VOCABULARY_TENSORS, "token_type_ids", "pair_slots", "pair_labels")
    return PackedLoss(terms, packed_pair_loss_sums, tensors)
