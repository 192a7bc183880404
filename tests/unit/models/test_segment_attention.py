"""The attention operator against plain formulas, in forward and gradient (fp64)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.models import flash_blocks
from pipeline.models import segment_attention as module
from pipeline.models.segment_attention import segment_attention, segment_attention_forward

WIDTH = 8
SCALE = 0.3
LENGTHS = {
    "one segment": [11],
    "different lengths": [3, 1, 7, 2],
    "equal neighbours": [4, 4, 4],
    "equal but apart": [4, 2, 4, 3, 4, 2],
    "empty segments": [0, 5, 0, 0, 3, 0, 0],
}


def inputs(lengths: list[int], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Query, key and value (T, H, D), not contiguous as in the models, and cu_seqlens."""
    generator = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    fused = torch.randn(total, 3, 2, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return [part.detach().requires_grad_() for part in fused.unbind(1)], cu_seqlens


def segment_numbers(cu_seqlens: Tensor) -> Tensor:
    """Number of the segment of every token, (T,)."""
    return torch.repeat_interleave(torch.arange(len(cu_seqlens) - 1), cu_seqlens.diff().long())


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, causal: bool, window: int | None = None
) -> Tensor:
    """softmax(scale Q K^T) V over all T tokens with a mask that separates the segments; autograd does the gradient."""
    number = segment_numbers(cu_seqlens)
    allowed = number[:, None] == number[None, :]
    if causal:
        allowed = allowed.tril()
    if window is not None:
        place = torch.arange(len(q))
        allowed &= (place[:, None] - place).abs() <= window
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("block_scores", [1, 64, 1 << 20])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", LENGTHS)
def test_equals_masked_attention(
    name: str, causal: bool, block_scores: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel, its causal blocks of three queries, and without it."""
    monkeypatch.setattr(module, "_BLOCK_SCORES", block_scores)
    monkeypatch.setattr(flash_blocks, "_BLOCK_QUERIES", 3)
    if kernel == "plain":
        monkeypatch.setattr(flash_blocks, "_BACKWARD", None)
    tensors, cu_seqlens = inputs(LENGTHS[name])
    assert flash_blocks.flash_takes(tensors[0]) == (kernel == "flash")
    output = segment_attention(*tensors, cu_seqlens, cu_seqlens, None, 0.0, causal, SCALE)
    truth = plain_attention(*tensors, cu_seqlens, causal)
    torch.testing.assert_close(output, truth, rtol=1e-12, atol=1e-12)
    direction = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(
        torch.autograd.grad(output, tensors, direction), torch.autograd.grad(truth, tensors, direction), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("window", [0, 1, 4, 7])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", LENGTHS)
def test_a_token_sees_no_farther_than_the_window(
    name: str, causal: bool, window: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_blocks, "_BLOCK_QUERIES", 3)
    if kernel == "plain":
        monkeypatch.setattr(flash_blocks, "_BACKWARD", None)
    tensors, cu_seqlens = inputs(LENGTHS[name])
    output = segment_attention(*tensors, cu_seqlens, cu_seqlens, None, 0.0, causal, SCALE, window)
    truth = plain_attention(*tensors, cu_seqlens, causal, window)
    torch.testing.assert_close(output, truth, rtol=1e-12, atol=1e-12)
    direction = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(
        torch.autograd.grad(output, tensors, direction), torch.autograd.grad(truth, tensors, direction), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("name", LENGTHS)
def test_some_of_the_queries_have_the_output_they_have_among_all(
    name: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third token asks, so that segments of one or two tokens may have no query at all."""
    if kernel == "plain":
        monkeypatch.setattr(flash_blocks, "_BACKWARD", None)
    tensors, cu_seqlens = inputs(LENGTHS[name])
    asking = torch.arange(1, len(tensors[0]), 3)
    cu_queries = torch.searchsorted(asking, cu_seqlens, out_int32=True)
    query, key, value = tensors
    output = segment_attention(query[asking], key, value, cu_queries, cu_seqlens, None, 0.0, False, SCALE)
    truth = plain_attention(*tensors, cu_seqlens, causal=False)[asking]
    torch.testing.assert_close(output, truth, rtol=1e-12, atol=1e-12)
    direction = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ours, expected in zip(
        torch.autograd.grad(output, tensors, direction), torch.autograd.grad(truth, tensors, direction), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_equals_finite_differences(causal: bool, dropout: float) -> None:
    """With dropout too: a fixed seed makes it a deterministic function."""
    tensors, cu_seqlens = inputs(LENGTHS["equal but apart"])
    seed = torch.tensor([5]) if dropout else None
    assert torch.autograd.gradcheck(
        lambda q, k, v: segment_attention(q, k, v, cu_seqlens, cu_seqlens, seed, dropout, causal, SCALE),
        tensors,
        fast_mode=True,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_equals_plain_attention_with_the_same_mask(causal: bool) -> None:
    """The mask is read off with weights of one value and values of one key at a time: output = weight x mask."""
    tensors, cu_seqlens = inputs([5, 3])
    total, dropout, seed = 8, 0.4, torch.tensor([9])
    one_key = torch.eye(total, dtype=torch.float64)[:, None, :].expand(total, 2, total)  # value j is unit vector j
    equal = torch.zeros_like(one_key)  # no score above another; as wide as there are tokens
    output = segment_attention(equal, equal, one_key, cu_seqlens, cu_seqlens, seed, dropout, causal, SCALE)  # T H T
    kept = (output.transpose(0, 1) > 0).double() / (1 - dropout)  # H T T
    q, k, v = tensors
    number = segment_numbers(cu_seqlens)
    allowed = number[:, None] == number[None, :]
    allowed = allowed.tril() if causal else allowed
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1) * kept
    truth = torch.einsum("hqk,khd->qhd", weights, v)
    assert 0 < (kept[:, allowed] > 0).double().mean() < 1
    ours = segment_attention(*tensors, cu_seqlens, cu_seqlens, seed, dropout, causal, SCALE)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    direction = torch.randn(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for gradient, expected in zip(
        torch.autograd.grad(ours, tensors, direction), torch.autograd.grad(truth, tensors, direction), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_dropout_is_named_by_its_seed() -> None:
    tensors, cu_seqlens = inputs([40, 24])
    first, again, other = (
        segment_attention(*tensors, cu_seqlens, cu_seqlens, torch.tensor([seed]), 0.5, False, SCALE)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_keeps_the_mean_and_drops_the_share_asked_for() -> None:
    """With equal weights and values of one, an output is the kept share / (1 - dropout): 400 draws a token."""
    length, dropout = 400, 0.2
    zeros, ones = torch.zeros(length, 2, WIDTH), torch.ones(length, 2, WIDTH)
    cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
    output = segment_attention(zeros, zeros, ones, cu_seqlens, cu_seqlens, torch.tensor([3]), dropout, False, SCALE)
    kept = output[:, :, 0] * (1 - dropout)  # (T, H), each a mean of 400 Bernoulli(0.8) draws
    assert kept.mean().item() == pytest.approx(1 - dropout, abs=5 * (0.16 / (400 * 800)) ** 0.5)
    assert kept.std().item() == pytest.approx((0.16 / 400) ** 0.5, rel=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_bf16_is_as_close_as_bf16_can_be(causal: bool) -> None:
    tensors, cu_seqlens = inputs([30, 18], torch.bfloat16)
    output = segment_attention(*tensors, cu_seqlens, cu_seqlens, None, 0.0, causal, SCALE)
    assert output.dtype == torch.bfloat16
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = plain_attention(*exact, cu_seqlens, causal)
    torch.testing.assert_close(output.double(), truth, rtol=2**-7, atol=2**-7)
    gradients = torch.autograd.grad(output.float().sum(), tensors)
    for ours, expected in zip(gradients, torch.autograd.grad(truth.sum(), exact), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), expected, rtol=2**-5, atol=2**-6)


def test_tokens_of_no_segment_are_zero() -> None:
    tensors, _ = inputs([6])
    output = segment_attention(*tensors, *[torch.tensor([0, 4, 4], dtype=torch.int32)] * 2, None, 0.0, False, SCALE)
    assert torch.equal(output[4:], torch.zeros_like(output[4:]))
    assert output[:4].abs().min() > 0


@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_operator_keeps_the_rules_of_torch(dropout: float, window: int) -> None:
    """Schema, fake tensors, autograd registration and tracing agree with what the operator does."""
    tensors, cu_seqlens = inputs(LENGTHS["different lengths"], torch.float32)
    seed = torch.tensor([5]) if dropout else None
    arguments = (*tensors, cu_seqlens, cu_seqlens, seed, dropout, True, SCALE, window)
    torch.library.opcheck(segment_attention_forward, arguments)
