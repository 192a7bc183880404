"""The forward pass of a stock model over one packed row, with logits, or their loss, at the predicted positions only.

Letters: T tokens of the packed row, P predicted positions, V vocabulary, K segments, E width of the model.
"""

from __future__ import annotations

from typing import Any, Final, cast

from torch import Tensor, nn

from pipeline.models.blocks import transformer_blocks
from pipeline.models.families import FAMILIES, Family
from pipeline.models.head_loss import head_loss_of, install_head_loss
from pipeline.models.last_block import POSITIONS, narrow_last_block

_SELECT_NAME: Final = "select_rows"
_TABLES_NAME: Final = "position_tables"
_PAIRS_NAME: Final = "select_pairs"
_NARROW_NAME: Final = "last_block_is_narrow"


class SelectRows:
    """A forward pre-hook of the head's first module: it passes on the hidden states of the predicted positions only.

    Most stock classes have no argument for this, and computing all logits costs more memory than the whole encoder. An
    object, not a closure, so that copying a model copies the link between the two places that hold it.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self.keeps_hidden = False
        self.hidden: Tensor | None = None
        """What the head was given last, (1, P, E), if asked for."""

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = arguments
        if self.positions is not None:
            # Backward this adds whole rows; `hidden[:, positions]`, GPT-2's `logits_to_keep` too, would sort them on
            # CUDA.
            hidden = hidden.index_select(1, self.positions)  # 1 P E
        if self.keeps_hidden:
            self.hidden = hidden
        return None if self.positions is None else (hidden, *rest)


class SetPositions:
    """Gives a position table that takes none from its model the positions of a packed row.

    A forward pre-hook, with keywords, of BART's `embed_positions`, which the model calls for a row of one text.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self.positions is None else (arguments, {**keywords, "position_ids": self.positions})


class SelectPairs:
    """Has the stock pooler read the first token of every pair, not only that of the row.

    A forward pre-hook of the pooler and, where that is given the first token and nothing else, a forward hook of the
    module that made it. An object, as :class:`SelectRows`.
    """

    def __init__(self) -> None:
        self.indices: Tensor | None = None
        self._hidden: Tensor | None = None

    def keep(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Remember the hidden states that the first tokens are taken from, (1, T, E)."""
        if self.indices is not None:
            self._hidden = output[0]

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.indices is None:
            return None
        hidden, self._hidden = (arguments[0] if self._hidden is None else self._hidden), None
        chosen = hidden.index_select(1, self.indices)  # 1 K E
        return (chosen.transpose(0, 1) if arguments[0].dim() == 3 else chosen.squeeze(0),)  # K 1 E or K E


def prepare_packed(model: nn.Module, narrow: bool = False) -> None:
    """Install what the functions below need on ``model``, once; called without them, the model stays as it was.

    Args:
        narrow: compute the last block at the predicted positions only, where the family can: see :mod:`.last_block`.
    """
    if hasattr(model, _SELECT_NAME):
        return
    narrow = narrow and family_of(model).narrow_last_block
    if narrow:
        narrow_last_block(transformer_blocks(model)[-1])
    setattr(model, _NARROW_NAME, narrow)
    decoder = cast("Any", model).get_output_embeddings()
    select = SelectRows()
    setattr(model, _SELECT_NAME, select)
    if decoder is None:  # a discriminator, which judges every token
        return
    model.get_submodule(family_of(model).head_entry).register_forward_pre_hook(select)
    tables = {}
    for path in family_of(model).position_hooks:
        tables[path] = SetPositions()
        model.get_submodule(path).register_forward_pre_hook(tables[path], with_kwargs=True)
    setattr(model, _TABLES_NAME, tables)
    if has_pair_head(model):
        pair_head = family_of(model).pair_head
        assert pair_head is not None
        pairs = SelectPairs()
        model.get_submodule(pair_head.pooler).register_forward_pre_hook(pairs)
        if pair_head.hidden_of is not None:
            model.get_submodule(pair_head.hidden_of).register_forward_hook(pairs.keep)
        setattr(model, _PAIRS_NAME, pairs)
    install_head_loss(model, decoder)


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
    select: SelectRows = getattr(model, _SELECT_NAME)
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
    select: SelectRows = getattr(model, _SELECT_NAME)
    tables: dict[str, SetPositions] = getattr(model, _TABLES_NAME)
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
    loss = head_loss_of(model)
    loss.labels = labels
    try:
        encoder = (input_ids, position_ids, cu_seqlens)
        decoder = (decoder_input_ids, decoder_position_ids, decoder_cu_seqlens)
        # BART adds a constant row of zeros to its "logits".
        return packed_seq2seq_logits(model, *encoder, *decoder, max_seqlen, prediction_positions).flatten()[0]
    finally:
        loss.labels = None


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
    pairs: SelectPairs = getattr(model, _PAIRS_NAME)
    pair_head = family_of(model).pair_head
    assert pair_head is not None
    # A last block that is computed at the predicted positions only has no other rows.
    pairs.indices = pair_slots if getattr(model, _NARROW_NAME) else prediction_positions.index_select(0, pair_slots)
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
    loss = head_loss_of(model)
    loss.labels = labels
    try:
        outputs = _forward(model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions)
    finally:
        loss.labels = None
    if not has_pair_head(model):
        return outputs.logits
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
    loss = head_loss_of(model)
    loss.labels = labels
    try:
        return packed_pair_logits(
            model, input_ids, position_ids, token_type_ids, cu_seqlens, max_seqlen, prediction_positions, pair_slots
        )
    finally:
        loss.labels = None


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
        position_ids = position_ids + (_config_of(model).pad_token_id + 1)
    select: SelectRows = getattr(model, _SELECT_NAME)
    arguments = dict(family.forward_arguments)
    if getattr(model, _NARROW_NAME) and prediction_positions is not None:
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


def has_pair_head(model: nn.Module) -> bool:
    """Whether a stock model is of its family's class for sentence pairs."""
    pair_head = family_of(model).pair_head
    return pair_head is not None and type(model).__name__ == pair_head.model_class


def family_of(model: nn.Module) -> Family:
    """The table entry of a model, by its config's ``model_type``."""
    return FAMILIES[_config_of(model).model_type]


def _config_of(model: nn.Module) -> Any:
    return cast("Any", model).config
