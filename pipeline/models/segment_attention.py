"""Exact attention inside segments, as one opaque operator that eager mode and ``torch.compile`` both take.

Letters: T tokens of the packed row, H heads, D head width, K segments, G segments of one length, N that length.

The cost is the sum of squared segment lengths, not T squared: segments of equal length are gathered and computed
together, the others one by one. The operator is opaque because a loop over data-dependent lengths cannot be traced;
its gradient is written by hand because autograd does not run inside a custom operator. It saves no N x N matrix: the
backward pass computes the weights again (Chen et al. 2016, "Training deep nets with sublinear memory cost").

Without dropout, CPUs have a kernel (`flash_blocks.py`); with it, and on a GPU, the formulas are written out below.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    cu_seqlens: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
) -> Tensor:
    """softmax(scale Q K^T) V of every segment by itself (Vaswani et al. 2017, equation 1).

    Args:
        query, key, value: (T, H, D), any floating dtype; computed in fp32 at least.
        cu_seqlens: int (K + 1,), starts of the segments and the end of the last; equal neighbours are an empty segment.
        seed: int64 (1,), draws the dropout; None where ``dropout`` is 0. The same seed gives the same dropout.
        dropout: share of the attention weights that is zeroed, the rest is scaled by 1 / (1 - dropout).
        causal: a token sees itself and the tokens before it in its segment.

    Returns:
        (T, H, D) in the dtype of ``query``; 0 at tokens of no segment.
    """
    return segment_attention_forward(query, key, value, cu_seqlens, seed, dropout, causal, scale)[0]


@torch.library.custom_op("pretrain::segment_attention", mutates_args=())
def segment_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output of :func:`segment_attention`, and what the kernel's backward pass needs.

    Returns:
        (T, H, D), and the logarithms of the softmax's sums, (T, H) in fp32 at least; the plain formulas leave them 0.
    """
    output = query.new_zeros(query.shape)  # T H D
    log_sums = query.new_zeros(query.shape[:2], dtype=_raised_dtype(query))  # T H
    generator = _generator(seed, query.device)
    with torch.autocast(query.device.type, enabled=False):
        for index, length in _blocks(cu_seqlens, query.shape[1]):
            q, k, v = (_raised(_take(tensor, index, length)) for tensor in (query, key, value))  # G H N D
            if generator is None and flash_takes(query):
                block, sums = flash_forward(q, k, v, causal, scale)  # G H N D, G H N
                _put(log_sums, index, sums)
            else:
                weights = _weights(q * scale, k, causal)  # G H N N
                if generator is not None:
                    weights.mul_(_keep(weights, dropout, generator))
                block = torch.matmul(weights, v)  # G H N D
            _put(output, index, block)
    return output, log_sums


@torch.library.custom_op("pretrain::segment_attention_backward", mutates_args=())
def segment_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, (T, H, D) each, from the gradient of the output (T, H, D)."""
    gradients = tuple(tensor.new_zeros(tensor.shape) for tensor in (query, key, value))  # 3 x T H D
    generator = _generator(seed, query.device)
    gradient = gradient.contiguous()  # a sum's is one number with strides of 0
    with torch.autocast(query.device.type, enabled=False):
        for index, length in _blocks(cu_seqlens, query.shape[1]):
            tensors = (gradient, query, key, value, output)
            d_out, q, k, v, out = (_raised(_take(tensor, index, length)) for tensor in tensors)  # G H N D
            if generator is None and flash_takes(query):
                blocks = flash_backward(d_out, q, k, v, out, _take(log_sums, index, length), causal, scale)
            else:
                blocks = _plain_backward(d_out, q, k, v, out, dropout, generator, causal, scale)
            for whole, block in zip(gradients, blocks, strict=True):
                _put(whole, index, block)
    return gradients[0], gradients[1], gradients[2]


@segment_attention_forward.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=_raised_dtype(query))


@segment_attention_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, seed, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, seed)


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = segment_attention_backward(gradient, *ctx.saved_tensors, *ctx.settings)
    return (*gradients, None, None, None, None, None)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block, (G, H, N, D) as all its tensors.

    With weights P, dropout mask M and A = P * M: dV = A^T dO, dP = (dO V^T) * M, dS = P * (dP - rowsum(dO * O)),
    dQ = scale dS K, dK = scale dS^T Q (Dao et al. 2022, FlashAttention, appendix B.2).
    """
    query = query * scale
    weights = _weights(query, key, causal)  # G H N N
    kept = weights
    d_weights = torch.matmul(gradient, value.transpose(-1, -2))  # G H N N
    if generator is not None:
        mask = _keep(weights, dropout, generator)
        kept = weights * mask
        d_weights.mul_(mask)
    d_value = torch.matmul(kept.transpose(-1, -2), gradient)
    row_sums = (gradient * output).sum(-1, keepdim=True)  # G H N 1
    d_scores = d_weights.sub_(row_sums).mul_(weights)  # G H N N
    return torch.matmul(d_scores, key).mul_(scale), torch.matmul(d_scores.transpose(-1, -2), query), d_value


def _blocks(cu_seqlens: Tensor, num_heads: int) -> Iterator[tuple[Tensor | slice, int]]:
    """Tokens of segments of one length, and that length: a slice for one segment, else an index (G * N,)."""
    bounds = cu_seqlens.tolist()
    starts_of: dict[int, list[int]] = {}
    for start, end in pairwise(bounds):
        if end > start:
            starts_of.setdefault(end - start, []).append(start)
    for length, starts in starts_of.items():
        at_once = max(1, _BLOCK_SCORES // (num_heads * length * length))
        for first in range(0, len(starts), at_once):
            block = starts[first : first + at_once]
            if block[-1] - block[0] == (len(block) - 1) * length:  # neighbours: no copy
                yield slice(block[0], block[-1] + length), length
            else:
                offsets = torch.arange(length, device=cu_seqlens.device)  # N
                column = torch.tensor(block, device=cu_seqlens.device)[:, None]  # G 1
                yield (column + offsets).flatten(), length


def _take(tensor: Tensor, index: Tensor | slice, length: int) -> Tensor:
    """(T, H, ...) -> (G, H, N, ...)."""
    return tensor[index].unflatten(0, (-1, length)).transpose(1, 2)


def _put(tensor: Tensor, index: Tensor | slice, block: Tensor) -> None:
    """Write (G, H, N, ...) into (T, H, ...), in the dtype of the latter."""
    tensor[index] = block.transpose(1, 2).flatten(0, 1).to(tensor.dtype)


def _raised(tensor: Tensor) -> Tensor:
    """fp32 at least: batched bf16 products of strided blocks are 40 times slower than fp32 ones on a CPU."""
    return tensor.to(_raised_dtype(tensor))


def _raised_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _weights(scaled_query: Tensor, key: Tensor, causal: bool) -> Tensor:
    """Attention weights (G, H, N, N) before dropout."""
    scores = torch.matmul(scaled_query, key.transpose(-1, -2))  # G H N N
    if causal:
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu_(1)  # N N
        scores.masked_fill_(future, float("-inf"))
    return torch.softmax(scores, -1)


def _generator(seed: Tensor | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed.item()))


def _keep(weights: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """0 with probability ``dropout``, else 1 / (1 - dropout); the blocks come in one order in both passes."""
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
