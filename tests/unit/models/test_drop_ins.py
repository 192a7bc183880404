"""Drop-in modules equal the stock ones in forward and gradient (fp64), and nobody sees them from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.models.build import build_model, stock_state_dict
from pipeline.models.drop_ins import TanhGELU, install_drop_ins
from pipeline.objectives.loss import packed_loss_sum
from tests.unit.models.packing_cases import SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    case = PackedCase([[7, 12, 5], [20]])
    positions, labels = case.padded_predictions(48)
    rows = (case.input_ids.view(2, 32), case.position_ids.view(2, 32), case.cu_seqlens)
    loss = packed_loss_sum(model, *rows, positions, labels, 32)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("gpt2", {}),
        ("bert", {"hidden_act": "gelu_new"}),
        ("roberta", {"hidden_act": "gelu_pytorch_tanh"}),
        ("distilbert", {"activation": "gelu_new"}),
        ("albert", {"embedding_size": 16}),
        ("electra", {"embedding_size": 16, "hidden_act": "gelu_new"}),
    ],
)
def test_a_model_with_drop_ins_is_the_stock_model(family: Any, extra: dict[str, Any]) -> None:
    models = [
        build_model(
            tiny_config(family, extra=extra, drop_ins=drop_ins),
            vocab_size=VOCAB_SIZE,
            special_ids=SPECIAL_IDS,
            seed=3,
        ).double()
        for drop_ins in (False, True)
    ]
    stock, ours = (sum(isinstance(module, TanhGELU) for module in model.modules()) for model in models)
    assert stock == 0
    assert ours >= 2
    (loss, gradients), (our_loss, our_gradients) = (loss_and_gradients(model) for model in models)
    torch.testing.assert_close(our_loss, loss, rtol=1e-12, atol=0)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-11, atol=1e-12)
    weights, ours_exported = (stock_state_dict(model) for model in models)
    assert list(ours_exported) == list(weights)
    assert all(torch.equal(ours_exported[name], weights[name]) for name in weights)
    assert models[1].config.to_dict() == models[0].config.to_dict()


def test_models_with_another_activation_keep_it() -> None:
    model = build_model(tiny_config("bert", drop_ins=False), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0)
    assert install_drop_ins(model) == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_gelu_equals_the_formula(compiled: bool) -> None:
    """Also as it stands in a compiled graph, far from 0 as well: there nothing overflows."""
    from transformers.activations import NewGELUActivation

    torch._dynamo.reset()
    hidden = torch.cat([torch.linspace(-8, 8, 999), torch.tensor([-1e4, -50.0, 50.0, 1e4])])
    hidden = hidden.double().requires_grad_()
    drop_in = TanhGELU()
    ours = torch.compile(drop_in, backend="eager")(hidden) if compiled else drop_in(hidden)
    truth = NewGELUActivation()(hidden)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(ours.sum(), hidden)
    (expected,) = torch.autograd.grad(truth.sum(), hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
