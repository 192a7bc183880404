"""The loss of an encoder and a decoder over packed rows.

Letters: R rows, S sequence length, P places for predictions.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from pipeline.models.packed import packed_seq2seq_loss
from pipeline.objectives.loss import PackedLoss, with_hits
from pipeline.objectives.terms import Term

_TENSORS: Final = (
    "input_ids",
    "position_ids",
    "cu_seqlens",
    "decoder_input_ids",
    "decoder_position_ids",
    "decoder_cu_seqlens",
    "prediction_positions",
    "labels",
)


def packed_seq2seq_loss_sum(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    decoder_input_ids: Tensor,
    decoder_position_ids: Tensor,
    decoder_cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    max_seqlen: int,
) -> Tensor:
    """Sum of the cross-entropies of a micro-batch, in fp32 (fp64 for an fp64 model).

    Args:
        model: from ``build_model``, with encoder and decoder.
        input_ids, position_ids: of the encoder, int64 (R, S).
        cu_seqlens: of the encoder, int32, over the R * S flattened tokens.
        decoder_input_ids, decoder_position_ids, decoder_cu_seqlens: of the decoder; as many segments.
        prediction_positions: int64 (P,), into the decoder's flattened tokens.
        labels: int64 (P,); -100 is not counted.
        max_seqlen: bound of the segment lengths, a constant of the run.
    """
    encoder = (input_ids.view(1, -1), position_ids.view(-1), cu_seqlens)
    decoder = (decoder_input_ids.view(1, -1), decoder_position_ids.view(-1), decoder_cu_seqlens)
    return packed_seq2seq_loss(model, *encoder, *decoder, max_seqlen, prediction_positions, labels)


def packed_seq2seq_loss_sum_and_hits(model: nn.Module, *arguments: Any) -> tuple[Tensor, Tensor]:
    """:func:`packed_seq2seq_loss_sum`, and the hits, int64 (2,)."""
    return with_hits(packed_seq2seq_loss_sum, model, *arguments)


def seq2seq_loss(name: str) -> PackedLoss:
    """The cross-entropy of the decoder's tokens as the only term."""
    terms, shares = (Term(name, "predictions"),), (f"accuracy_{name}",)
    return PackedLoss(terms, packed_seq2seq_loss_sum, _TENSORS, shares, packed_seq2seq_loss_sum_and_hits)
