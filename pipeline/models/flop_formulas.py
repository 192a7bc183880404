"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the attention operator, which it cannot look into.

Letters: T tokens of the packed row, Q queries (T, or fewer), H heads, D head width, K segments, n_i length of segment
i, q_i queries in it.

The convention is that of ``pipeline.models.flops``: a causal model needs half of the products, and the backward pass
is two forward passes (the weights that it computes again are no work of the model). torch's own formulas for
``scaled_dot_product_attention`` and for ``varlen_attn`` on CUDA count causal attention in full.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from pipeline.base.window import pairs_in_window
from pipeline.models import segment_attention  # makes the operators known to torch


def attention_flops(query: Tensor, cu_queries: Tensor, cu_keys: Tensor, causal: bool, window: int) -> int:
    """QK^T and PV inside every segment: 4 H D sum(q_i n_i), half of it where causal; with a window, of the pairs of
    tokens that are no farther apart.

    Args:
        query: (Q, H, D).
        cu_queries: int (K + 1,), starts of the segments' queries and the end of the last's.
        cu_keys: int (K + 1,), the same of the keys.
    """
    num_heads, width = query.shape[-2:]
    lengths = cu_keys.diff().to(torch.int64)
    pairs = int((cu_queries.diff() * lengths).sum())
    if window >= 0:
        pairs = sum(pairs_in_window(length, window) for length in lengths.tolist())
    return 4 * num_heads * width * pairs // (2 if causal else 1)


def register_flop_formulas() -> None:
    """Have :class:`FlopCounterMode` count packed attention; may be called again."""
    # The backward pass has four products, the gradients of the weights, V, Q and K, where the forward pass has two.
    operators: dict[Any, int] = {
        segment_attention.segment_attention_forward: 1,
        segment_attention.segment_attention_backward: 2,
    }
    for operator, num_forwards in operators.items():
        if operator._opoverload.overloadpacket not in flop_registry:
            _register(operator._opoverload, num_forwards)


def _register(overload: Any, num_forwards: int) -> None:
    names = [argument.name for argument in overload._schema.arguments]

    @register_flop_formula(overload.overloadpacket, get_raw=True)
    def formula(*values: Any, **named: Any) -> int:
        given = {**dict(zip(names, values, strict=False)), **named}
        bounds = (given["cu_queries"], given["cu_keys"])
        return num_forwards * attention_flops(given["query"], *bounds, given["causal"], given.get("window", -1))
