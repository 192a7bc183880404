"""The forward pass of a stock model over one packed row, with logits, or their loss, at the predicted positions only.

Letters: T tokens of the packed row, P predicted positions, V vocabulary, K segments, E width of the model.
"""

from __future__ import annotations

from typing import Any, Final, cast

from torch import Tensor, nn

from pipeline.models.blocks import transformer_blocks
from pipeline.models.families import FAMILIES, Family
from pipeline.models.head_loss import HeadLoss
from pipeline.models.last_block import POSITIONS, narrow_last_block

_SELECT_NAME: Final = "select_rows"
_LOSS_NAME: Final = "head_loss"
_NARROW_NAME: Final = "last_block_is_narrow"


class SelectRows:
    """A forward pre-hook of the head's first module: it passes on the hidden states of the predicted positions only.

    Most stock classes have no argument for this, and computing all logits costs more memory than the whole encoder. An
    object, not a closure, so that copying a model copies the link between the two places that hold it.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        hidden, *rest = arguments
        # Backward this adds whole rows; `hidden[:, positions]`, GPT-2's `logits_to_keep` too, would sort them on CUDA.
        return (hidden.index_select(1, self.positions), *rest)  # 1 P E


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
    select = SelectRows()
    model.get_submodule(family_of(model).head_entry).register_forward_pre_hook(select)
    setattr(model, _SELECT_NAME, select)
    decoder = cast("Any", model).get_output_embeddings()
    loss = HeadLoss(decoder)
    decoder.forward = loss.forward
    setattr(model, _LOSS_NAME, loss)


def packed_logits(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
) -> Tensor:
    """Logits of a packed row; each segment is computed as if it were alone.

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
    return _forward(model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions).squeeze(0)  # P V


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
    loss: HeadLoss = getattr(model, _LOSS_NAME)
    loss.labels = labels
    try:
        return _forward(model, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions)
    finally:
        loss.labels = None


def _forward(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
) -> Tensor:
    """What the stock forward calls its logits."""
    family = family_of(model)
    if family.positions_follow_padding:
        position_ids = position_ids + (_config_of(model).pad_token_id + 1)
    select: SelectRows = getattr(model, _SELECT_NAME)
    arguments = dict(family.forward_arguments)
    if getattr(model, _NARROW_NAME):
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
        ).logits
    finally:
        select.positions = None


def family_of(model: nn.Module) -> Family:
    """The table entry of a model, by its config's ``model_type``."""
    return FAMILIES[_config_of(model).model_type]


def _config_of(model: nn.Module) -> Any:
    return cast("Any", model).config
