"""Flash attention on packed rows against the exact operator, on a GPU."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.run import Family
from pipeline.models.attention import packed_attention
from pipeline.models.build import build_model
from pipeline.models.segment_attention import segment_attention
from pipeline.objectives.loss import packed_loss_sum
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

pytestmark = pytest.mark.gpu

CASES = [[[32], [32]], [[7, 12, 5], [20]], [[1, 1, 9, 9], [16, 16]], [[2], [3]]]


def loss_and_gradients(
    model: torch.nn.Module, case: PackedCase, function: object = packed_loss_sum
) -> tuple[float, torch.Tensor]:
    """Loss sum, and all gradients as one vector."""
    positions, labels = (tensor.cuda() for tensor in case.padded_predictions(48))
    rows = (case.input_ids.view(2, 32).cuda(), case.position_ids.view(2, 32).cuda(), case.cu_seqlens.cuda())
    model.zero_grad()
    loss = function(model, *rows, positions, labels, 32)  # type: ignore[operator]
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("causal", [False, True])
def test_kernel_equals_the_exact_operator(causal: bool) -> None:
    """Different lengths and trailing empty segments; gradients too."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 4, 70, 64, generator=generator).to("cuda", torch.bfloat16).requires_grad_() for _ in range(3)
    )
    cu_seqlens = torch.tensor([0, 30, 31, 60, 70, 70, 70], dtype=torch.int32, device="cuda")
    layer = torch.nn.Module()
    layer.is_causal = causal
    bounds = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": 32}
    output, _ = packed_attention(layer, q, k, v, None, **bounds)
    exact = [tensor.detach().float()[0].transpose(0, 1).requires_grad_() for tensor in (q, k, v)]
    truth = segment_attention(*exact, cu_seqlens, cu_seqlens, None, 0.0, causal, 64**-0.5)
    torch.testing.assert_close(output[0].float(), truth, rtol=2e-2, atol=2e-2)
    direction = torch.randn(truth.shape, generator=generator).cuda()
    ours = torch.autograd.grad(output, (q, k, v), direction[None].to(torch.bfloat16))
    for gradient, expected in zip(ours, torch.autograd.grad(truth, exact, direction), strict=True):
        torch.testing.assert_close(gradient[0].transpose(0, 1).float(), expected, rtol=5e-2, atol=5e-2)


def test_some_of_the_queries_have_the_output_they_have_among_all() -> None:
    """Segments without a query too: their keys and values have a gradient of 0."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 4, 70, 64, generator=generator).to("cuda", torch.bfloat16).requires_grad_() for _ in range(3)
    )
    cu_seqlens = torch.tensor([0, 30, 31, 60, 70, 70, 70], dtype=torch.int32, device="cuda")
    asking = torch.tensor([0, 4, 29, 33, 34, 59], device="cuda")
    layer = torch.nn.Module()
    layer.is_causal = False
    few, _ = packed_attention(
        layer,
        q.index_select(2, asking),
        k,
        v,
        None,
        cu_seq_lens_q=torch.searchsorted(asking, cu_seqlens, out_int32=True),
        cu_seq_lens_k=cu_seqlens,
        max_length_q=32,
    )
    every, _ = packed_attention(
        layer, q, k, v, None, cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens, max_length_q=32
    )
    torch.testing.assert_close(few, every[:, asking], rtol=2e-2, atol=2e-2)
    direction = torch.randn(few.shape, generator=generator).to("cuda", torch.bfloat16)
    ours = torch.autograd.grad(few, (q, k, v), direction)
    for gradient, expected in zip(ours, torch.autograd.grad(every[:, asking], (q, k, v), direction), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_and_autocast_agree_with_the_cpu(family: Family) -> None:
    config = tiny_config(family, hidden_size=48, num_heads=3)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0).cuda()
    for number, rows in enumerate(CASES):
        case = PackedCase(rows, seed=number)
        loss, gradients = loss_and_gradients(model, case)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            half_loss, half_gradients = loss_and_gradients(model, case)
        positions, labels = case.padded_predictions(48)
        on_cpu = packed_loss_sum(
            model.cpu(),
            case.input_ids.view(2, 32),
            case.position_ids.view(2, 32),
            case.cu_seqlens,
            positions,
            labels,
            32,
        )
        model.cuda()
        assert loss == pytest.approx(on_cpu.item(), rel=1e-4)
        assert half_loss == pytest.approx(loss, rel=0.02)
        assert (half_gradients - gradients).norm() < 0.05 * gradients.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_whole_and_once(family: Family) -> None:
    torch._dynamo.reset()
    config = tiny_config(family, hidden_size=48, num_heads=3)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0).cuda()
    compiled = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.autocast("cuda", dtype=torch.bfloat16):
        for number, rows in enumerate(CASES):
            case = PackedCase(rows, seed=number)
            loss, gradients = loss_and_gradients(model, case)
            compiled_loss, compiled_gradients = loss_and_gradients(model, case, compiled)
            assert compiled_loss == pytest.approx(loss, rel=0.02)
            assert (compiled_gradients - gradients).norm() < 0.05 * gradients.norm()


def test_attention_dropout_runs_the_exact_operator() -> None:
    """The same loss and gradients for the same seed, others for another."""
    model = build_model(
        tiny_config("bert", attention_dropout=0.1), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0
    ).cuda()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            results.append(loss_and_gradients(model, PackedCase(CASES[1]))[0])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[2] != pytest.approx(results[1], rel=1e-5)


def test_cuda_graphs_draw_the_dropout_that_was_seeded() -> None:
    """A replayed graph reads the seed that was set before it, and is right after a change of the weights."""
    torch._dynamo.reset()
    config = tiny_config("bert", hidden_size=48, num_heads=3, hidden_dropout=0.3)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0).cuda()
    for parameter in model.parameters():  # as the training step keeps them: never replaced by a graph's memory
        parameter.grad = torch.zeros_like(parameter)
    compiled = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False, mode="reduce-overhead")
    case = PackedCase(CASES[1])
    positions, labels = (tensor.cuda() for tensor in case.padded_predictions(48))
    rows = (case.input_ids.view(2, 32).cuda(), case.position_ids.view(2, 32).cuda(), case.cu_seqlens.cuda())
    losses = []
    for seed in (1, 2, 3, 1, 2, 3, 1):
        torch.manual_seed(seed)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = compiled(model, *rows, positions, labels, 32).clone()
        loss.backward()
        losses.append(loss.item())
    assert losses[3:6] == pytest.approx([losses[6], *losses[4:6]], rel=1e-5)
    assert len({round(loss, 3) for loss in losses[3:6]}) == 3
