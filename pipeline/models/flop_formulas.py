"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the attention operator, which it cannot look into.

Letters: T tokens of the packed row, H heads, D head width, K segments, n_i length of segment i.

The convention is that of ``pipeline.models.flops``: a causal model needs half of the products, and the backward pass
is two forward passes (the weights that it computes again are no work of the model). torch's own formulas for
``scaled_dot_product_attention`` and for ``varlen_attn`` on CUDA count causal attention in full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from pipeline.models import segment_attention  # makes the operators known to torch


def segment_attention_flops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    """QK^T and PV inside every segment: 4 H D sum(n_i^2), half of it where causal. Arguments as of the operator."""
    num_heads, width = query.shape[-2:]
    lengths = cu_seqlens.diff().to(torch.int64)  # K
    return 4 * num_heads * width * int((lengths * lengths).sum()) // (2 if causal else 1)


def segment_attention_backward_flops(gradient: Tensor, *arguments: Any, **_: Any) -> int:
    """Gradients of the weights, V, Q and K: four products where the forward pass has two."""
    query, key, value, _output, *rest = arguments
    return 2 * segment_attention_flops(query, key, value, *rest)


def register_flop_formulas() -> None:
    """Have :class:`FlopCounterMode` count packed attention; may be called again."""
    operators: dict[Any, Callable[..., int]] = {
        segment_attention.segment_attention: segment_attention_flops,
        segment_attention.segment_attention_backward: segment_attention_backward_flops,
    }
    for operator, formula in operators.items():
        packet = operator._opoverload.overloadpacket
        if packet not in flop_registry:
            register_flop_formula(packet, get_raw=True)(formula)
