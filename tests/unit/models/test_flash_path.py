"""What a model does around flash attention on CUDA, shown on a CPU: torch's ``varlen_attn`` over a kernel written out.

The kernel's two operators get an implementation for CPUs here. ``varlen_attn``, its gradient and its tracing are
torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config.run import ActivationCheckpointing, Family
from pipeline.models import attention
from pipeline.models.blocks import checkpoint_activations
from pipeline.models.build import build_model
from pipeline.objectives.loss import packed_loss_sum
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

CASE = PackedCase([[7, 12, 5], [20]])
HALF = torch.bfloat16


def weights_of_segments(
    q: Tensor, k: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool, scale: float, window: int | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Queries, keys and attention weights (H, M, N) of every segment with both."""
    for (query, query_end), (key, key_end) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        if query_end > query and key_end > key:
            queries, keys = slice(query, query_end), slice(key, key_end)
            scores = scale * torch.einsum("mhd,nhd->hmn", q[queries].float(), k[keys].float())
            if causal:
                scores += torch.full(scores.shape[1:], float("-inf")).triu(1)
            if window is not None and window >= 0:
                far = torch.full(scores.shape[1:], float("-inf"))
                scores += far.triu(window + 1) + far.tril(-window - 1)
            yield queries, keys, scores.softmax(-1)


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *rest: Any, **options: Any
) -> tuple[Tensor, ...]:
    """As the kernel: half precision, int32 bounds that lie within the maximum."""
    dropout, causal = rest[:2]
    assert {q.dtype, k.dtype, v.dtype} == {HALF}
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert dropout == 0.0
    assert int(cu_q.diff().max()) <= max_q
    assert int(cu_k.diff().max()) <= max_k
    output = torch.zeros_like(q)
    for queries, keys, weights in weights_of_segments(
        q, k, cu_q, cu_k, causal, options["scale"], options["window_size_left"]
    ):
        output[queries] = torch.einsum("hmn,nhd->mhd", weights, v[keys].float()).to(HALF)
    nothing = torch.zeros(2, dtype=torch.uint64)
    return output, torch.zeros(q.shape[1], q.shape[0]), nothing, nothing.clone(), torch.empty(0)


def flash_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, _: Tensor, cu_q: Tensor, cu_k: Tensor,
    max_q: int, max_k: int, dropout: float, causal: bool, *rest: Any, scale: float, **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    assert {tensor.dtype for tensor in (gradient, q, k, v, output)} == {HALF}
    d_q, d_k, d_v = (torch.zeros_like(tensor) for tensor in (q, k, v))
    for queries, keys, weights in weights_of_segments(q, k, cu_q, cu_k, causal, scale, options["window_size_left"]):
        d_out = gradient[queries].float()
        d_weights = torch.einsum("mhd,nhd->hmn", d_out, v[keys].float())
        d_scores = scale * weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True))
        d_q[queries] = torch.einsum("hmn,nhd->mhd", d_scores, k[keys].float()).to(HALF)
        d_k[keys] = torch.einsum("hmn,mhd->nhd", d_scores, q[queries].float()).to(HALF)
        d_v[keys] = torch.einsum("hmn,mhd->nhd", weights, d_out).to(HALF)
    return d_q, d_k, d_v


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the operators called, in order, while activations in half precision take the way of CUDA."""
    names: list[str] = []
    library = torch.library.Library("aten", "IMPL")
    for name, function in (("forward", flash_forward), ("backward", flash_backward)):

        def called(*arguments: Any, _name: str = name, _function: Any = function, **options: Any) -> Any:
            names.append(_name)
            with torch.autocast("cpu", enabled=False):
                return _function(*arguments, **options)

        library.impl(f"_flash_attention_{name}", called, "CPU")
    monkeypatch.setattr(attention, "_flash_takes", lambda query: query.dtype == HALF)
    torch._dynamo.reset()
    yield names
    torch._dynamo.reset()
    library._destroy()


def gradients(
    family: Family, kept: ActivationCheckpointing = "none", loss_sum: Any = packed_loss_sum, **shape: int
) -> Tensor:
    """Of a model under bf16 autocast, with dropout, as one vector."""
    config = tiny_config(family, hidden_dropout=0.1, **shape)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0)
    checkpoint_activations(model, kept)
    torch.manual_seed(1)
    rows = (CASE.input_ids.view(2, 32), CASE.position_ids.view(2, 32), CASE.cu_seqlens)
    with torch.autocast("cpu", dtype=HALF):
        loss = loss_sum(model, *rows, *CASE.padded_predictions(20), 32)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_exact_operator(
    family: Family, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flash = gradients(family)
    assert calls == ["forward"] * 2 + ["backward"] * 2
    monkeypatch.setattr(attention, "_flash_takes", lambda query: False)
    exact = gradients(family)
    assert len(calls) == 4
    assert (flash - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("kept", "forwards"), [("full", 4), ("selective", 2)])
def test_checkpointing_keeps_the_kernels_results_or_computes_them_again(
    kept: ActivationCheckpointing, forwards: int, calls: list[str]
) -> None:
    plain = gradients("bert")
    calls.clear()
    assert torch.equal(gradients("bert", kept), plain)
    assert calls.count("forward") == forwards


def test_a_compiled_graph_holds_the_kernel(calls: list[str]) -> None:
    plain = gradients("gpt2", num_layers=1)
    calls.clear()
    compiled = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False, backend="aot_eager")
    found = gradients("gpt2", "selective", compiled, num_layers=1)
    assert (found - plain).norm() < 0.02 * plain.norm()
    assert calls == ["forward", "backward"]
