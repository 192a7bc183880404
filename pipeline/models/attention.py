"""The attention function that stock transformers models are built with: packed rows, no mask.

Letters: T tokens of the packed row, Q queries (T, or fewer), H heads, D head width, K segments.

Only transformers' ``AttentionInterface`` knows its name. With no entry in ``AttentionMaskInterface`` the models build
no mask at all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.config.attention import FLASH_MAX_HEAD_WIDTH, FLASH_WIDTH_MULTIPLE, reasons_against_flash
from pipeline.config.run import ModelConfig, PrecisionName
from pipeline.models.segment_attention import segment_attention

ATTENTION_NAME: Final = "pretrain_varlen"
# With no auxiliary output asked for it returns a tensor.
_flash_attention = cast("Callable[..., Tensor]", varlen_attn)
_FLASH_DTYPES: Final = (torch.float16, torch.bfloat16)
_FLASH_MIN_CAPABILITY: Final = (8, 0)
_FLASH_3_MAJOR: Final = 9

_NOT_PACKED: Final = (
    f"attention `{ATTENTION_NAME}` takes one packed row with cu_seq_lens_q, cu_seq_lens_k and max_length_q and no "
    "attention_mask: call the model through pipeline.models.packed.packed_logits"
)


def register_attention() -> None:
    """Make :data:`ATTENTION_NAME` known to transformers; may be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    decoder_cu_seq_lens: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention inside the segments of one packed row: flash attention on CUDA in bf16 and fp16, else the exact one.

    Flash attention for packed rows has no dropout of the weights: with some, the exact operator runs there too.

    Args:
        module: the stock attention module; ``module.is_causal`` decides where ``is_causal`` is None.
        query: (1, H, Q, D).
        key, value: (1, H, T, D); or of fewer heads, which serve several each (Ainslie et al. 2023, "GQA").
        attention_mask: must be None.
        cu_seq_lens_q: int32 (K + 1,), starts of the segments' queries and the end of the last's.
        cu_seq_lens_k: the same of the keys; where causal, the same numbers.
        decoder_cu_seq_lens: segments of the decoder, where the model has one; those above are then the encoder's, and
            the module says which of the two its queries and its keys are.
        max_length_q: bound of the segment lengths, a constant of the run.
        sliding_window: a token sees those nearer to it than this, as transformers means it; None: all.

    Returns:
        (1, Q, H, D), and None for the attention weights.

    Raises:
        ValueError: a mask, or no segments: the model was not called through ``packed_logits``.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None or max_length_q is None or attention_mask is not None:
        raise ValueError(_NOT_PACKED)
    if query.shape[0] != 1:
        raise ValueError(_NOT_PACKED)
    causal = bool(module.is_causal if is_causal is None else is_causal)
    if decoder_cu_seq_lens is not None and getattr(module, "is_decoder", False):
        cu_seq_lens_q, cu_seq_lens_k = decoder_cu_seq_lens, decoder_cu_seq_lens if causal else cu_seq_lens_k
    window = (sliding_window or 0) - 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[1] != query.shape[1]:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))  # Q H D, T H D twice
    if _flash_takes(q) and dropout == 0:
        lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_q)
        output = _flash_attention(q, k, v, *lengths, scale=scale, window_size=(window, 0 if causal else window))
    else:
        # Drawn from torch's default generator, so whoever seeds that seeds the dropout.
        seed = torch.randint(2**62, (1,), dtype=torch.int64) if dropout > 0 else None
        output = segment_attention(q, k, v, cu_seq_lens_q, cu_seq_lens_k, seed, dropout, causal, scale, window)
    return output.unsqueeze(0), None


def check_device(config: ModelConfig, device_type: str, precision: PrecisionName) -> None:
    """Refuse before the first step what the kernels of a device cannot do, and say what they do slowly.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``; for the latter the current device is asked for its capability.

    Raises:
        UserError: bf16 or fp16 on a GPU without flash attention.
    """
    if device_type != "cuda":
        return
    for reason in reasons_against_flash(config, precision):
        get_logger().warning("%s. The exact operator runs, many times slower.", reason)
    capability = torch.cuda.get_device_capability()
    if precision != "fp32" and capability < _FLASH_MIN_CAPABILITY:
        raise UserError(
            f"train.precision: {precision} needs a GPU of compute capability 8.0 (Ampere) or newer for packed "
            f"attention, this one has {capability[0]}.{capability[1]}: set `train.precision: fp32`, which is slow "
            "there, or use a newer GPU."
        )


def use_flash_attention_3(device_type: str) -> bool:
    """Have ``varlen_attn`` run FlashAttention 3 (Shah et al. 2024) where it is installed and made for the GPU.

    torch itself has FlashAttention 2. The third comes as the module ``flash_attn_interface``, for Hopper (9.x) only.

    Returns:
        whether it runs from now on, in this process.
    """
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if (
        device_type != "cuda"
        or activate is None
        or torch.cuda.get_device_capability()[0] != _FLASH_3_MAJOR
        or importlib.util.find_spec("flash_attn_interface") is None
    ):
        return False
    activate("FA3")
    get_logger().info("attention: FlashAttention 3")
    return True


def _flash_takes(query: Tensor) -> bool:
    width = query.shape[-1]
    fits = width % FLASH_WIDTH_MULTIPLE == 0 and width <= FLASH_MAX_HEAD_WIDTH
    return query.is_cuda and query.dtype in _FLASH_DTYPES and fits
