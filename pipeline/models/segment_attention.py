"""Exact attention inside segments, as one opaque operator that eager mode and ``torch.compile`` both take.

Letters: T tokens of the packed row, Q queries (T, or fewer), H heads, D head width, K segments, G segments that are
computed together, M queries of each, N keys of each.

The cost is the sum of squared segment lengths, not T squared: segments of equal lengths are gathered and computed
together, the others one by one. The operator is opaque because a loop over data-dependent lengths cannot be traced;
its gradient is written by hand because autograd does not run inside a custom operator. It saves no N x N matrix: the
backward pass computes the weights again (Chen et al. 2016, "Training deep nets with sublinear memory cost").

Without dropout, CPUs have a kernel (`flash_blocks.py`); with it, and on a GPU, the formulas are written out below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.models.flash_blocks import flash_backward, flash_forward, flash_takes

# Scores computed at once, at most: larger blocks leave the processor's cache, smaller ones cost more calls.
_BLOCK_SCORES = 1 << 20


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    window: int = -1,
) -> Tensor:
    """softmax(scale Q K^T) V of every segment by itself (Vaswani et al. 2017, equation 1).

    Args:
        query: (Q, H, D), any floating dtype; computed in fp32 at least.
        key, value: (T, H, D), of the same dtype.
        cu_queries: int (K + 1,), starts of the segments' queries and the end of the last's; equal neighbours are an
            empty segment.
        cu_keys: int (K + 1,), the same of the keys; where ``causal``, the same numbers.
        seed: int64 (1,), draws the dropout; None where ``dropout`` is 0. The same seed gives the same dropout.
        dropout: share of the attention weights that is zeroed, the rest is scaled by 1 / (1 - dropout).
        causal: a token sees itself and the tokens before it in its segment.
        window: a token sees those at most this far from it; -1: all. With one, ``cu_queries`` and ``cu_keys`` are the
            same numbers.

    Returns:
        (Q, H, D) in the dtype of ``query``; 0 at queries of no segment.
    """
    return segment_attention_forward(query, key, value, cu_queries, cu_keys, seed, dropout, causal, scale, window)[0]


@torch.library.custom_op("pretrain::segment_attention", mutates_args=())
def segment_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor]:
    """The output of :func:`segment_attention`, and what the kernel's backward pass needs.

    Returns:
        (Q, H, D), and the logarithms of the softmax's sums, (Q, H) in fp32 at least; the plain formulas leave them 0.
    """
    blocks = list(_blocks(cu_queries, cu_keys, query.shape[1]))
    output = _memory_like(query, [queries for queries, _ in blocks])  # Q H D
    log_sums = query.new_zeros(query.shape[:2], dtype=_raised_dtype(query))  # Q H
    generator = _generator(seed, query.device)
    with torch.autocast(query.device.type, enabled=False):
        for queries, keys in blocks:
            q = _raised(queries.take(query))  # G H M D
            k, v = (_raised(keys.take(tensor)) for tensor in (key, value))  # G H N D
            if generator is None and flash_takes(query):
                block, sums = flash_forward(q, k, v, causal, scale, _window_of(keys, window))  # G H M D, G H M
                queries.put(log_sums, sums)
            else:
                weights = _weights(q * scale, k, causal, window)  # G H M N
                if generator is not None:
                    weights.mul_(_keep(weights, dropout, generator))
                block = torch.matmul(weights, v)  # G H M D
            queries.put(output, block)
    return output, log_sums


@torch.library.custom_op("pretrain::segment_attention_backward", mutates_args=())
def segment_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    cu_queries: Tensor,
    cu_keys: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query (Q, H, D), key and value (T, H, D), from the gradient of the output (Q, H, D)."""
    blocks = list(_blocks(cu_queries, cu_keys, query.shape[1]))
    d_query = _memory_like(query, [queries for queries, _ in blocks])
    d_key, d_value = (_memory_like(tensor, [keys for _, keys in blocks]) for tensor in (key, value))
    generator = _generator(seed, query.device)
    gradient = gradient.contiguous()  # a sum's is one number with strides of 0
    with torch.autocast(query.device.type, enabled=False):
        for queries, keys in blocks:
            d_out, q, out = (_raised(queries.take(tensor)) for tensor in (gradient, query, output))  # G H M D
            k, v = (_raised(keys.take(tensor)) for tensor in (key, value))  # G H N D
            if generator is None and flash_takes(query):
                own = _window_of(keys, window)
                d_q, d_k, d_v = flash_backward(d_out, q, k, v, out, queries.take(log_sums), causal, scale, own)
            else:
                d_q, d_k, d_v = _plain_backward(d_out, q, k, v, out, dropout, generator, causal, scale, window)
            queries.put(d_query, d_q)
            keys.put(d_key, d_k)
            keys.put(d_value, d_v)
    return d_query, d_key, d_value


@segment_attention_forward.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=_raised_dtype(query))


@segment_attention_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_queries, cu_keys, seed, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, *output, cu_queries, cu_keys, seed)


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = segment_attention_backward(gradient, *ctx.saved_tensors, *ctx.settings)
    return (*gradients, None, None, None, None, None, None, None)


segment_attention_forward.register_autograd(_backward, setup_context=_save)


def _plain_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    dropout: float,
    generator: torch.Generator | None,
    causal: bool,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block: of queries (G, H, M, D), keys and values (G, H, N, D).

    With weights P, dropout mask M and A = P * M: dV = A^T dO, dP = (dO V^T) * M, dS = P * (dP - rowsum(dO * O)),
    dQ = scale dS K, dK = scale dS^T Q (Dao et al. 2022, FlashAttention, appendix B.2).
    """
    query = query * scale
    weights = _weights(query, key, causal, window)  # G H M N
    kept = weights
    d_weights = torch.matmul(gradient, value.transpose(-1, -2))  # G H M N
    if generator is not None:
        mask = _keep(weights, dropout, generator)
        kept = weights * mask
        d_weights.mul_(mask)
    d_value = torch.matmul(kept.transpose(-1, -2), gradient)
    row_sums = (gradient * output).sum(-1, keepdim=True)  # G H M 1
    d_scores = d_weights.sub_(row_sums).mul_(weights)  # G H M N
    return torch.matmul(d_scores, key).mul_(scale), torch.matmul(d_scores.transpose(-1, -2), query), d_value


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of G segments of one length stand: neighbours as a slice, which copies nothing."""

    index: Tensor | slice
    length: int
    num_tokens: int

    def take(self, tensor: Tensor) -> Tensor:
        """(T, H, ...) -> (G, H, length, ...)."""
        return tensor[self.index].unflatten(0, (-1, self.length)).transpose(1, 2)

    def put(self, tensor: Tensor, block: Tensor) -> None:
        """Write (G, H, length, ...) into (T, H, ...), in the dtype of the latter."""
        tensor[self.index] = block.transpose(1, 2).flatten(0, 1).to(tensor.dtype)


def _blocks(cu_queries: Tensor, cu_keys: Tensor, num_heads: int) -> Iterator[tuple[_Rows, _Rows]]:
    """Segments of equal numbers of queries and of keys: where both stand."""
    starts_of: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (query, query_end), (key, key_end) in zip(
        pairwise(cu_queries.tolist()), pairwise(cu_keys.tolist()), strict=True
    ):
        if query_end > query and key_end > key:
            starts_of.setdefault((query_end - query, key_end - key), []).append((query, key))
    for (num_queries, num_keys), starts in starts_of.items():
        at_once = max(1, _BLOCK_SCORES // (num_heads * num_queries * num_keys))
        for first in range(0, len(starts), at_once):
            queries, keys = zip(*starts[first : first + at_once], strict=True)
            yield _rows(queries, num_queries, cu_queries.device), _rows(keys, num_keys, cu_keys.device)


def _rows(starts: Sequence[int], length: int, device: torch.device) -> _Rows:
    if starts[-1] - starts[0] == (len(starts) - 1) * length:
        return _Rows(slice(starts[0], starts[-1] + length), length, len(starts) * length)
    column = torch.tensor(starts, device=device)[:, None]  # G 1
    return _Rows((column + torch.arange(length, device=device)).flatten(), length, len(starts) * length)


def _memory_like(tensor: Tensor, written: Sequence[_Rows]) -> Tensor:
    """For as many tokens (T, H, D), 0 where nothing will be written."""
    whole = sum(rows.num_tokens for rows in written) == len(tensor)
    return tensor.new_empty(tensor.shape) if whole else tensor.new_zeros(tensor.shape)


def _raised(tensor: Tensor) -> Tensor:
    """fp32 at least: batched bf16 products of strided blocks are 40 times slower than fp32 ones on a CPU."""
    return tensor.to(_raised_dtype(tensor))


def _raised_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _window_of(keys: _Rows, window: int) -> int:
    """-1 where the window holds all of a segment."""
    return window if window < keys.length - 1 else -1


def _weights(scaled_query: Tensor, key: Tensor, causal: bool, window: int) -> Tensor:
    """Attention weights (G, H, M, N) before dropout."""
    scores = torch.matmul(scaled_query, key.transpose(-1, -2))  # G H M N
    if causal:
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu_(1)  # N N
        scores.masked_fill_(future, float("-inf"))
    if 0 <= window < scores.shape[-1] - 1:
        place = torch.arange(scores.shape[-1], device=scores.device)
        scores.masked_fill_((place - place[:, None]).abs() > window, float("-inf"))  # N N
    return torch.softmax(scores, -1)


def _generator(seed: Tensor | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed.item()))


def _keep(weights: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """0 with probability ``dropout``, else 1 / (1 - dropout); the blocks come in one order in both passes."""
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
