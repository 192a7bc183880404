"""The forward pass of a stock model over one packed row, with logits at the predicted positions only.

Letters: T tokens of the packed row, P predicted positions, V vocabulary, K segments, E width of the model.
"""

from __future__ import annotations

from typing import Any, Final, cast

from torch import Tensor, nn

from pipeline.models.families import FAMILIES, Family

_HOOK_NAME: Final = "select_rows"


class SelectRows:
    """A forward pre-hook of the head's first module: it passes on the hidden states of the predicted positions only.

    The stock class has no argument for this, and computing all logits costs more memory than the whole encoder. An
    object, not a closure, so that copying a model copies the link between the two places that hold it.
    """

    def __init__(self) -> None:
        self.positions: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        hidden, *rest = arguments
        return (hidden[:, self.positions], *rest)  # 1 P E


def prepare_packed(model: nn.Module) -> None:
    """Install the hook of the family on ``model``, once; without ``packed_logits`` the model stays as it was."""
    entry = family_of(model).head_entry
    if entry is not None and not hasattr(model, _HOOK_NAME):
        hook = SelectRows()
        model.get_submodule(entry).register_forward_pre_hook(hook)
        setattr(model, _HOOK_NAME, hook)


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
        prediction_positions: int64 (P,), indices into T.

    Returns:
        (P, V). No other logits are computed.
    """
    family = family_of(model)
    if family.positions_follow_padding:
        position_ids = position_ids + (_config_of(model).pad_token_id + 1)
    arguments = dict(
        input_ids=input_ids,
        position_ids=position_ids,
        cu_seq_lens_q=cu_seqlens,
        cu_seq_lens_k=cu_seqlens,
        max_length_q=max_seqlen,
        max_length_k=max_seqlen,
        **family.forward_arguments,
    )
    if family.head_entry is None:
        return model(**arguments, logits_to_keep=prediction_positions).logits.squeeze(0)  # P V
    select: SelectRows = getattr(model, _HOOK_NAME)
    select.positions = prediction_positions
    try:
        return model(**arguments).logits.squeeze(0)  # P V
    finally:
        select.positions = None


def family_of(model: nn.Module) -> Family:
    """The table entry of a model, by its config's ``model_type``."""
    return FAMILIES[_config_of(model).model_type]


def _config_of(model: nn.Module) -> Any:
    return cast("Any", model).config
