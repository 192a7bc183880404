"""The forward pass of a stock model over one packed row, with logits, or their loss, at the predicted positions only.

Letters: T tokens of the packed row, P predicted positions, V vocabulary, K segments, E width of the model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.models.hooks import (
    NARROW_NAME,
    PAIRS_NAME,
    SELECT_NAME,
    TABLES_NAME,
    SelectPairs,
    SelectRows,
    SetPositions,
    config_of,
    family_of,
    has_pair_head,
    loss_of_logits,
    with_labels,
)
from pipeline.models.last_block import POSITIONS


def packed_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
) -> Tensor:
    """Logits of the vocabulary over a packed row; each segment is computed as if it were alone.

    Args:
        model: from ``build_model``.
        input_ids: int64 (1, T).
        position_ids: int64 (1, T), from 0 in every segment.
        cu_seqlens: int32 (K + 1,), starts of the segments and the end of the last; padding is a segment too.
        max_seqlen: bound of the segment lengths; a constant, or ``torch.compile`` compiles again.
        prediction_positions: int64 (P,), indices into T, ascending, all different.

    Returns:
        (P, V). No other logits are computed.
    """
    outputs = _forward(model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions)
    return outputs["prediction_logits" if has_pair_head(model) else "logits"].squeeze(0)  # P V


def packed_logits_and_hidden(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """:func:`packed_logits` (P, V), and the hidden states that they are made of (P, E)."""
    select: SelectRows = getattr(model, SELECT_NAME)
    select.keeps_hidden = True
    try:
        logits = packed_logits(model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions)
        assert select.hidden is not None
        return logits, select.hidden.squeeze(0)
    finally:
        select.keeps_hidden, select.hidden = False, None


def packed_seq2seq_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    decoder_input_ids: Tensor,
    decoder_position_ids: Tensor,
    decoder_cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
) -> Tensor:
    """Logits of a decoder over a packed row; each segment is computed with the encoder's of its number, as if alone.

    Args:
        model: from ``build_model``, with encoder and decoder.
        input_ids, decoder_input_ids: int64 (1, T).
        position_ids, decoder_position_ids: int64 (T,), from 0 in every segment.
        cu_seqlens, decoder_cu_seqlens: int32 (K + 1,); segments may be empty.
        max_seqlen: bound of the segment lengths; a constant, or ``torch.compile`` compiles again.
        prediction_positions: int64 (P,), indices into the decoder's T, ascending, all different.

    Returns:
        (P, V); the sum of the losses instead, (1, V) times the same, while the head has labels.
    """
    family = family_of(model)
    select: SelectRows = getattr(model, SELECT_NAME)
    tables: dict[str, SetPositions] = getattr(model, TABLES_NAME)
    select.positions = prediction_positions
    for table, positions in zip(tables.values(), (position_ids, decoder_position_ids), strict=True):
        table.positions = positions
    try:
        logits = model(
            input_ids=input_ids,
            decoder_input_ids=decoder_input_ids,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            decoder_cu_seq_lens=decoder_cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
            **family.forward_arguments,
        ).logits
    finally:
        select.positions = None
        for table in tables.values():
            table.positions = None
    return logits.squeeze(0) if logits.dim() == 3 else logits


def packed_seq2seq_loss(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    decoder_input_ids: Tensor,
    decoder_position_ids: Tensor,
    decoder_cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
    labels: Tensor,
) -> Tensor:
    """Sum of the cross-entropies at the predicted positions, without their logits; arguments as of
    :func:`packed_seq2seq_logits`.

    Args:
        labels: int64 (P,); -100 is not counted.

    Returns:
        Scalar, fp32 (fp64 for an fp64 model).
    """
    encoder = (input_ids, position_ids, cu_seqlens)
    decoder = (decoder_input_ids, decoder_position_ids, decoder_cu_seqlens)
    with with_labels(model, labels):
        logits = packed_seq2seq_logits(model, *encoder, *decoder, max_seqlen, prediction_positions)
        return loss_of_logits(model, logits, labels)


def packed_pair_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
    pair_slots: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits of the vocabulary and of sentence pairs over a packed row.

    Args:
        model: from ``build_model`` with a head for pairs.
        input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions: as for :func:`packed_logits`.
        token_type_ids: int64 (1, T).
        pair_slots: int64 (K,), indices into ``prediction_positions`` of the first tokens of segments, ascending.

    Returns:
        (P, V) and (K, 2). The first is the sum of the losses instead, while the head has labels.
    """
    pairs: SelectPairs = getattr(model, PAIRS_NAME)
    pair_head = family_of(model).pair_head
    assert pair_head is not None
    # A last block that is computed at the predicted positions only has no other rows.
    pairs.indices = pair_slots if getattr(model, NARROW_NAME) else prediction_positions.index_select(0, pair_slots)
    try:
        outputs = _forward(
            model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions, token_type_ids=token_type_ids
        )
    finally:
        pairs.indices = None
    return outputs.prediction_logits.squeeze(0), outputs[pair_head.logits]


def packed_head_loss(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
    labels: Tensor,
) -> Tensor:
    """Sum of the cross-entropies at the predicted positions, without their logits: see :mod:`.head_loss`.

    Args:
        model, input_ids, position_ids, cu_seqlens, max_seqlen: as for :func:`packed_logits`.
        prediction_positions: int64 (P,), indices into T, ascending, all different.
        labels: int64 (P,); -100 is not counted.

    Returns:
        Scalar, fp32 (fp64 for an fp64 model).
    """
    with with_labels(model, labels):
        outputs = _forward(model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions)
        if not has_pair_head(model):
            logits = outputs.logits
            return loss_of_logits(model, logits.squeeze(0) if logits.dim() == 3 else logits, labels)
    # Every step gives every parameter a gradient, if of 0: `ddp` waits for all of them, and an optimizer that sees none
    # would do something else than one that sees 0.
    pair_head = family_of(model).pair_head
    assert pair_head is not None
    return outputs.prediction_logits + 0 * outputs[pair_head.logits].sum()


def packed_head_loss_and_pair_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
    labels: Tensor,
    pair_slots: Tensor,
) -> tuple[Tensor, Tensor]:
    """:func:`packed_head_loss` and the logits of sentence pairs.

    Args:
        model: from ``build_model`` with a head for pairs.
        token_type_ids: int64 (1, T).
        pair_slots: int64 (K,), indices into ``prediction_positions`` of the first tokens of segments, ascending.

    Returns:
        A scalar, fp32 (fp64 for an fp64 model), and (K, 2).
    """
    with with_labels(model, labels):
        return packed_pair_logits(
            model, input_ids, position_ids, token_type_ids, cu_seqlens, max_seqlen, prediction_positions, pair_slots
        )


def packed_outputs(
    model: nn.Module, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Any:
    """The outputs of the stock forward at every token of a packed row; arguments as of :func:`packed_logits`."""
    return _forward(model, input_ids, position_ids, cu_seqlens, max_seqlen, None)


def _forward(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor | None,
    **more: Tensor,
) -> Any:
    """The outputs of the stock forward, which calls its logits what the head has returned."""
    family = family_of(model)
    if family.positions_follow_padding:
        position_ids = position_ids + (config_of(model).pad_token_id + 1)
    select: SelectRows = getattr(model, SELECT_NAME)
    arguments = dict(family.forward_arguments)
    if getattr(model, NARROW_NAME) and prediction_positions is not None:
        arguments[POSITIONS] = prediction_positions
    else:
        select.positions = prediction_positions
    try:
        return model(
            input_ids=input_ids,
            position_ids=position_ids,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
            **arguments,
            **more,
        )
    finally:
        select.positions = None
