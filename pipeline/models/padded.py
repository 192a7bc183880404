"""The forward pass of a stock model that no packed row can be given to: rows of one text, padded, with a mask.

Letters: R rows, S sequence length, P predicted positions, V vocabulary, E width of the model.

As in the packed forward, the head's last layer is given the predicted positions only, by the same hook; whatever the
stock class does to its logits afterwards stays.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.models.hooks import family_of, loss_of_logits, selected_rows, with_labels


def padded_logits(model: nn.Module, input_ids: Tensor, is_real: Tensor, prediction_positions: Tensor) -> Tensor:
    """Logits of the vocabulary at the predicted positions.

    Args:
        model: from ``build_model``, of a family that runs padded.
        input_ids: int64 (R, S).
        is_real: bool (R, S), false in padding. A row of padding alone is read whole: a softmax over nothing is no
            number.
        prediction_positions: int64 (P,), indices into the R * S flattened tokens, ascending, all different.

    Returns:
        (P, V); the sum of the losses instead, a scalar, while the head has labels.
    """
    return _logits(model, prediction_positions, input_ids=input_ids, attention_mask=attention_mask(is_real))


def padded_loss(
    model: nn.Module, input_ids: Tensor, is_real: Tensor, prediction_positions: Tensor, labels: Tensor
) -> Tensor:
    """Sum of the cross-entropies at the predicted positions; arguments as of :func:`padded_logits`.

    Args:
        labels: int64 (P,); -100 is not counted.

    Returns:
        Scalar, fp32 (fp64 for an fp64 model).
    """
    with with_labels(model, labels):
        return loss_of_logits(model, padded_logits(model, input_ids, is_real, prediction_positions), labels)


def padded_seq2seq_logits(
    model: nn.Module,
    input_ids: Tensor,
    is_real: Tensor,
    decoder_input_ids: Tensor,
    decoder_is_real: Tensor,
    prediction_positions: Tensor,
) -> Tensor:
    """Logits of a decoder at the predicted positions; arguments as of :func:`padded_logits`.

    Args:
        decoder_input_ids: int64 (R, S).
        decoder_is_real: bool (R, S).
        prediction_positions: int64 (P,), indices into the decoder's R * S flattened tokens.
    """
    return _logits(
        model,
        prediction_positions,
        input_ids=input_ids,
        attention_mask=attention_mask(is_real),
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=attention_mask(decoder_is_real),
    )


def padded_seq2seq_loss(
    model: nn.Module,
    input_ids: Tensor,
    is_real: Tensor,
    decoder_input_ids: Tensor,
    decoder_is_real: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
) -> Tensor:
    """Sum of the cross-entropies of a decoder; arguments as of :func:`padded_seq2seq_logits`, labels int64 (P,)."""
    with with_labels(model, labels):
        logits = padded_seq2seq_logits(
            model, input_ids, is_real, decoder_input_ids, decoder_is_real, prediction_positions
        )
        return loss_of_logits(model, logits, labels)


def attention_mask(is_real: Tensor) -> Tensor:
    """1 where a token is read, 0 in padding, int64 (R, S); 1 everywhere in a row without any token."""
    return (is_real | ~is_real.any(1, keepdim=True)).long()


def _logits(model: nn.Module, prediction_positions: Tensor, **inputs: Any) -> Tensor:
    with selected_rows(model, prediction_positions):
        logits: Tensor = model(**inputs, **family_of(model).forward_arguments).logits
    return logits.squeeze(0) if logits.dim() == 3 else logits
