"""The chunked loss against cross_entropy of whole logits: value, gradients, memory, precision, padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.models import head_loss
from pipeline.models.head_loss import (
    VOCABULARY_MULTIPLE,
    linear_cross_entropy_sum,
    linear_cross_entropy_sum_and_hits,
)

P, V, E = 50, 97, 24
ROW_BYTES = 128 * 8  # of 97 logits, padded, in fp64


def tensors(vocabulary: int = V, with_bias: bool = True, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """Hidden states, weight, bias and labels, a fifth of which are not counted."""
    generator = torch.Generator().manual_seed(3)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=dtype) for shape in ((P, E), (vocabulary, E), (vocabulary,))
    )
    labels = torch.randint(0, vocabulary, (P,), generator=generator)
    labels[::5] = -100
    return [hidden, weight, bias if with_bias else None, labels]


def whole(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The truth: all logits at once."""
    logits = linear(hidden, weight, bias)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction="sum")


def results(
    function: Callable[..., Tensor], inputs: list[Tensor | None], *more: Any, scale: float = 0.3
) -> list[Tensor]:
    """The loss and the gradients of what is differentiable, of ``scale`` times the loss."""
    leaves = [None if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    loss = function(*leaves, *more)
    (scale * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves[:3] if leaf is not None)]


@pytest.mark.parametrize("vocabulary", [V, 128])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 7, 25, 50])
def test_equals_whole_logits_in_any_chunks(
    rows_at_once: int, with_bias: bool, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the softmax of three positions at once, which a chunk need not be a multiple of."""
    monkeypatch.setattr(head_loss, "_SOFTMAX_BYTES", 3 * ROW_BYTES)
    inputs = tensors(vocabulary, with_bias)
    found = results(linear_cross_entropy_sum, inputs, rows_at_once * ROW_BYTES)
    for ours, truth in zip(found, results(whole, inputs), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12 * truth.abs().max().item())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 7, 50])
def test_hits_are_those_of_whole_logits(
    rows_at_once: int, with_bias: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "_SOFTMAX_BYTES", 3 * ROW_BYTES)
    hidden, weight, bias, labels = tensors(with_bias=with_bias)
    likeliest = linear(hidden, weight, bias).argmax(-1)
    labels[1::3] = likeliest[1::3]  # type: ignore[index]
    labels[::5] = -100  # type: ignore[index]
    function = linear_cross_entropy_sum_and_hits
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        loss, hits = function(hidden, weight, bias, labels, rows_at_once * ROW_BYTES)
    counted = labels != -100
    assert hits.tolist() == [int((likeliest == labels)[counted].sum()), int(counted.sum())]
    assert 10 < hits[0] < hits[1] == 40
    torch.testing.assert_close(loss, whole(hidden, weight, bias, labels), rtol=1e-12, atol=0)


def test_counting_hits_never_makes_all_logits_at_once() -> None:
    inputs = tensors()
    with LargestTensor() as largest:
        linear_cross_entropy_sum_and_hits(*inputs, 10 * ROW_BYTES)
    assert largest.num_elements == max(10 * 128, 128 * E)


def test_a_chunk_is_no_longer_than_asked_for_and_chunks_are_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[torch.Size] = []
    log_softmax = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim: (sizes.append(x.shape), log_softmax(x, dim))[1])
    linear_cross_entropy_sum(*tensors(), 17 * ROW_BYTES)
    assert sizes == [(17, 128), (17, 128), (16, 128)]
    sizes.clear()
    linear_cross_entropy_sum(*tensors())
    assert sizes == [(P, 128)]  # what fits is computed at once
    sizes.clear()
    monkeypatch.setattr(head_loss, "_SOFTMAX_BYTES", 20 * ROW_BYTES)
    linear_cross_entropy_sum(*tensors())
    assert sizes == [(20, 128), (20, 128), (10, 128)]


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operator gives, and how many matrix products there were."""

    num_elements = 0
    num_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.num_elements = max([self.num_elements, *sizes])
        self.num_products += func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        return result


def test_all_logits_never_exist_at_once() -> None:
    inputs = tensors()
    with LargestTensor() as largest:
        results(linear_cross_entropy_sum, inputs, 10 * ROW_BYTES)
    assert largest.num_elements == max(10 * 128, 128 * E)
    with LargestTensor() as largest:
        results(whole, inputs)
    assert largest.num_elements == P * V


def test_a_compiled_graph_keeps_no_logits_for_the_backward_pass() -> None:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    kept: list[int] = []
    inputs = tensors()

    def forward_compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        outputs = graph.graph.output_node().args[0]
        kept.extend(node.meta["val"].numel() for node in outputs if isinstance(node, torch.fx.Node))
        return make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=forward_compiler,
        bw_compiler=lambda graph, _: make_boxed_func(graph),
        partition_fn=min_cut_rematerialization_partition,
    )
    torch._dynamo.reset()
    compiled = torch.compile(linear_cross_entropy_sum, fullgraph=True, dynamic=False, backend=backend)
    found = results(compiled, inputs, 10 * ROW_BYTES)
    torch._dynamo.reset()
    assert max(kept) == 128 * E  # the gradient of the weight; hidden states' is smaller, whole logits would be 50 x 97
    for ours, truth in zip(found, results(whole, inputs), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12 * truth.abs().max().item())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("rows_at_once", [8, 50])
def test_bf16_autocast_is_fp32_but_for_rounding(
    rows_at_once: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``native``: products in bf16, as on CUDA and on CPUs with bf16 instructions; else in fp32."""
    monkeypatch.setattr(head_loss, "_CPU_HAS_BF16", native)
    inputs = tensors(dtype=torch.float32)
    truth = results(whole, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(linear_cross_entropy_sum, inputs, rows_at_once * 128 * 2)
        stock = results(whole, inputs)
    for ours, theirs, exact in zip(found, stock, truth, strict=True):
        assert ours.dtype == torch.float32
        error, stock_error = ((value - exact).norm() / exact.norm() for value in (ours, theirs))
        assert error <= (1.2 * stock_error + 1e-4 if native else 1e-6)


def test_a_bf16_model_has_bf16_gradients_that_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "_CPU_HAS_BF16", True)
    inputs = tensors(dtype=torch.bfloat16)
    exact = results(whole, [t.double() if t is not None and t.is_floating_point() else t for t in inputs])
    one, many = (results(linear_cross_entropy_sum, inputs, rows * 128 * 2) for rows in (50, 1))
    assert [value.dtype for value in many] == [torch.float32, *[torch.bfloat16] * 3]
    for single, chunked, truth in zip(one[1:], many[1:], exact[1:], strict=True):
        errors = [float((value - truth).norm() / truth.norm()) for value in (single, chunked)]
        assert errors[1] < 1.5 * errors[0] < 0.03  # summed in bf16, 50 chunks would be several times worse


def test_padding_gets_no_probability_and_no_row_of_a_gradient() -> None:
    """Every real logit is far below 0: a padded id at 0 would take all the probability."""
    hidden, weight, bias, labels = tensors()
    loss, *gradients = results(linear_cross_entropy_sum, [hidden, weight * 0, bias * 0 - 50.0, labels])
    assert loss.item() == pytest.approx(40 * math.log(V), rel=1e-12)
    assert [gradient.shape for gradient in gradients] == [(P, E), (V, E), (V,)]
    assert VOCABULARY_MULTIPLE == 64


@pytest.mark.parametrize("count", [0, P])
def test_nothing_to_predict_is_loss_zero_with_gradients_of_zero(count: int) -> None:
    hidden, weight, bias, labels = tensors()
    inputs = [hidden[:count], weight, bias, torch.full_like(labels[:count], -100)]
    for value in results(linear_cross_entropy_sum, inputs, 7 * ROW_BYTES):
        assert not value.any()
        assert value.isfinite().all()


def test_logits_of_thousands_stay_finite() -> None:
    hidden, weight, bias, labels = tensors(dtype=torch.float32)
    inputs = [hidden * 300, weight, bias, labels]
    for ours, truth in zip(results(linear_cross_entropy_sum, inputs), results(whole, inputs), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())


def test_without_gradients_only_the_logits_are_computed() -> None:
    inputs = tensors(with_bias=False)
    with torch.no_grad(), LargestTensor() as seen:
        loss = linear_cross_entropy_sum(*inputs, 10 * ROW_BYTES)
    assert seen.num_products == 5  # one a chunk; each gradient would be another
    torch.testing.assert_close(loss, whole(*inputs), rtol=1e-12, atol=0)


def test_a_second_backward_pass_is_an_error_and_not_another_gradient() -> None:
    hidden, weight, bias, labels = tensors()
    loss = linear_cross_entropy_sum(hidden, weight.requires_grad_(), bias, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
