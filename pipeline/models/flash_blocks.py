"""Attention of segments of one length by torch's flash kernel for CPUs, and its gradient.

Letters: G segments, H heads, N keys of each, M queries of each (N where causal), D head width, Q queries of a block,
K keys that a block can see.

The kernel never holds an N x N matrix (Dao et al. 2022, FlashAttention). Its ``is_causal`` computes the whole square
up to 512 keys and masks half of it, so a causal segment is cut into blocks of queries here, each with the keys up to
its last query; and one whose tokens see no farther than a window, each with the keys that some query of it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# What scaled_dot_product_attention itself calls on a CPU. Private, so a torch without them gets the plain formulas.
_FORWARD: Callable[..., Any] | None = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD: Callable[..., Any] | None = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None
)
_BLOCK_QUERIES = 128  # smaller blocks skip more of the square and call the kernel more often


def flash_takes(query: Tensor) -> bool:
    """Whether the kernel exists for this device."""
    return query.device.type == "cpu" and _FORWARD is not None and _BACKWARD is not None


def flash_forward(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float, window: int = -1
) -> tuple[Tensor, Tensor]:
    """Outputs (G, H, M, D) and the logarithms of the softmax's sums (G, H, M).

    Args:
        query: (G, H, M, D), fp32 or fp64: the kernel's bf16 is many times slower.
        key, value: (G, H, N, D).
        window: a token sees those at most this far from it; -1: all.
    """
    assert _FORWARD is not None
    if not causal and window < 0:
        return _FORWARD(query, key, value, scale=scale)
    parts = [
        _FORWARD(query[:, :, rows], key[:, :, seen], value[:, :, seen], attn_mask=mask, scale=scale)
        for rows, seen, mask in _query_blocks(query, causal, window)
    ]  # (G H Q D, G H Q) each
    outputs, sums = zip(*reversed(parts), strict=True)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def flash_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    causal: bool,
    scale: float,
    window: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query (G, H, M, D), key and value (G, H, N, D); ``output`` and ``log_sums`` as the forward gave."""
    assert _BACKWARD is not None
    if not causal and window < 0:
        return _BACKWARD(gradient, query, key, value, output, log_sums, 0.0, False, scale=scale)
    d_queries: list[Tensor] = []
    d_key = d_value = key.new_empty(0)
    for rows, seen, mask in _query_blocks(query, causal, window):
        arguments = (tensor[:, :, rows] for tensor in (output, log_sums))
        d_query, d_keys, d_values = _BACKWARD(
            gradient[:, :, rows], query[:, :, rows], key[:, :, seen], value[:, :, seen], *arguments, 0.0, False,
            attn_mask=mask, scale=scale,
        )  # fmt: skip
        d_queries.append(d_query)
        if not d_key.numel() and d_keys.shape == key.shape:  # as in a causal segment
            d_key, d_value = d_keys, d_values
            continue
        if not d_key.numel():
            d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        d_key[:, :, seen] += d_keys
        d_value[:, :, seen] += d_values
    return torch.cat(d_queries[::-1], 2), d_key, d_value


def _query_blocks(query: Tensor, causal: bool, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of queries, the last one first, the keys that each sees, and its mask (Q, K)."""
    length = query.shape[2]
    for first in reversed(range(0, length, _BLOCK_QUERIES)):
        last = min(first + _BLOCK_QUERIES, length)
        rows = slice(first, last)
        if window < 0:
            yield rows, slice(last), _future_mask(last - first, last, query.dtype)
            continue
        seen = slice(max(0, first - window), last if causal else min(length, last + window))
        yield (
            rows,
            seen,
            _window_mask(last - first, first - seen.start, seen.stop - seen.start, causal, window, query.dtype),
        )


@lru_cache(maxsize=64)
def _window_mask(num_queries: int, before: int, num_keys: int, causal: bool, window: int, dtype: torch.dtype) -> Tensor:
    """(Q, K): minus infinity where a query would see a key too far away, or a later one where causal; else 0.

    Args:
        before: keys before the first query.
    """
    distance = torch.arange(num_keys) - (before + torch.arange(num_queries)[:, None])  # Q K
    hidden = (distance.abs() > window) | (causal & (distance > 0))
    return torch.zeros(num_queries, num_keys, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _future_mask(num_queries: int, num_keys: int, dtype: torch.dtype) -> Tensor:
    """(Q, K): minus infinity where a query, the last of which stands at the last key, would see a later one; else 0."""
    past = num_keys - num_queries
    room = 1 << max(past - 1, 0).bit_length()
    return _future_band(max(num_queries, _BLOCK_QUERIES), room, dtype)[:num_queries, room - past : room + num_queries]


@lru_cache(maxsize=8)
def _future_band(num_queries: int, room: int, dtype: torch.dtype) -> Tensor:
    """(Q, room + Q), of which all masks with up to ``room`` keys before the first query are views."""
    band = torch.full((num_queries, room + num_queries), float("-inf"), dtype=dtype)
    return band.triu_(room + 1)
