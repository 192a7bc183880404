"""The losses of models that run padded, as functions of tensors, made to be compiled whole.

Letters: R rows, S sequence length, P places for predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from torch import Tensor, nn

from pipeline.models.padded import padded_loss, padded_seq2seq_loss
from pipeline.objectives.loss import PackedLoss, packed_loss_sum, with_hits
from pipeline.objectives.seq2seq_loss import packed_seq2seq_loss_sum


def padded_loss_sum(
    model: nn.Module,
    input_ids: Tensor,
    is_real: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    max_seqlen: int,
) -> Tensor:
    """Sum of the cross-entropies of a micro-batch of rows of one text, in fp32 (fp64 for an fp64 model).

    Args:
        model: from ``build_model``, of a family that runs padded.
        input_ids: int64 (R, S).
        is_real: bool (R, S), false in padding.
        prediction_positions: int64 (P,), into the flattened tokens.
        labels: int64 (P,); -100 is not counted.
        max_seqlen: S; not read.
    """
    del max_seqlen
    return padded_loss(model, input_ids, is_real, prediction_positions, labels)


def padded_seq2seq_loss_sum(
    model: nn.Module,
    input_ids: Tensor,
    is_real: Tensor,
    decoder_input_ids: Tensor,
    decoder_is_real: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    max_seqlen: int,
) -> Tensor:
    """The same of an encoder and a decoder; predictions are of the decoder's tokens."""
    del max_seqlen
    sides = (input_ids, is_real, decoder_input_ids, decoder_is_real)
    return padded_seq2seq_loss(model, *sides, prediction_positions, labels)


_OF_PREDICTIONS: Final = ("prediction_positions", "labels")
_OF_SIDES: Final = ("input_ids", "is_real", "decoder_input_ids", "decoder_is_real")


def as_padded(loss: PackedLoss) -> PackedLoss:
    """The same loss for a model that runs padded.

    Raises:
        ValueError: it is none of predicted tokens alone.
    """
    if loss.function is packed_loss_sum:
        tensors: tuple[str, ...] = ("input_ids", "is_real")
        function: Callable[..., Tensor] = padded_loss_sum
    elif loss.function is packed_seq2seq_loss_sum:
        tensors, function = _OF_SIDES, padded_seq2seq_loss_sum
    else:
        raise ValueError(f"{', '.join(term.name for term in loss.terms)}: no model that runs padded has such a loss")
    measuring = None if loss.measuring is None else partial(with_hits, function)
    return replace(loss, function=function, tensors=(*tensors, *_OF_PREDICTIONS), measuring=measuring)
