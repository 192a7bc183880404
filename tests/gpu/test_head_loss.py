"""The chunked loss on CUDA: as whole logits in fp32 but for rounding, and in less memory than whole logits take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.head import Case, Head, check_equal, whole_logits
from pipeline.models.head_loss import linear_cross_entropy_sum
from tests.unit.models.test_head_loss import results, tensors

pytestmark = pytest.mark.gpu

CASE = Case("gpt2", num_positions=16384, width=768, vocabulary=50257, has_bias=True)
LOGITS_MEGABYTES = CASE.num_positions * CASE.vocabulary * 2 / 1e6  # in bf16
GRADIENTS_MEGABYTES = (CASE.vocabulary + CASE.num_positions) * CASE.width * 4 / 1e6


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def test_bf16_is_fp32_but_for_rounding() -> None:
    check_equal(Head(CASE, "cuda"))


@pytest.mark.parametrize("wrap", [lambda function: function, compiled], ids=["eager", "compiled"])
def test_equals_whole_logits_in_fp32(wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    case = Case("small", num_positions=4000, width=256, vocabulary=30522, has_bias=True)
    head = Head(case, "cuda")
    arguments = (head.hidden, head.weight, head.bias, head.labels)

    def gradients(loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, arguments[:3])]

    found = gradients(wrap(linear_cross_entropy_sum)(*arguments, 100 << 20))
    for ours, truth in zip(found, gradients(whole_logits(*arguments)), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())


@pytest.mark.parametrize("wrap", [lambda function: function, compiled], ids=["eager", "compiled"])
def test_bf16_gradients_take_the_whole_scale(wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    """1.25390625 lies halfway between two numbers of bf16: rounded, it would make all gradients 0.3 % smaller."""
    inputs = [None if tensor is None else tensor.cuda() for tensor in tensors(dtype=torch.bfloat16)]
    function = wrap(linear_cross_entropy_sum)
    unscaled, scaled = (results(function, inputs, scale=scale)[1:] for scale in (1.0, 1.25390625))
    for one, other in zip(unscaled, scaled, strict=True):
        share = (one.double() * other.double()).sum() / one.double().square().sum()
        assert share.item() == pytest.approx(1.25390625, abs=1e-3)


@pytest.mark.parametrize("wrap", [lambda function: function, compiled], ids=["eager", "compiled"])
def test_takes_less_memory_than_whole_logits(wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    head = Head(CASE, "cuda")
    ours, whole = head.megabytes(wrap(linear_cross_entropy_sum)), head.megabytes(whole_logits)
    assert whole > 3 * LOGITS_MEGABYTES
    # Chunks of 0.5 GB of bf16, twice that in fp32; the gradients, once more before they are scaled when compiled.
    assert ours < 3500 + 3 * GRADIENTS_MEGABYTES < whole
