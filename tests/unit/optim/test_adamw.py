"""Parameter groups and the optimizer's arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.optimization import OptimizerConfig
from pipeline.config.run import Family, ModelConfig
from pipeline.models.build import build_model
from pipeline.optim.adamw import make_optimizer, parameter_groups

SPECIAL_IDS = {"pad": 1, "cls": 0, "sep": 2, "mask": 4, "bos": 0, "eos": 2, "unk": 3}


def tiny_model(family: Family) -> nn.Module:
    config = ModelConfig(
        family=family, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16
    )
    return build_model(config, vocab_size=20, special_ids=SPECIAL_IDS, seed=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_weights_and_embeddings_decay_biases_and_norms_do_not(family: Family) -> None:
    model = tiny_model(family)
    decayed, rest = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name in (names[id(parameter)] for parameter in decayed["params"]):
        assert name.endswith("weight")
        assert "norm" not in name.lower()
        assert "ln_" not in name
    for name in (names[id(parameter)] for parameter in rest["params"]):
        assert name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name or ".ln_" in name


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_every_parameter_is_in_one_group_once(family: Family) -> None:
    model = tiny_model(family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    members = [id(parameter) for group in parameter_groups(model, 0.01) for parameter in group["params"]]
    assert sorted(members) == sorted({id(parameter) for parameter in model.parameters()})


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    (only,) = parameter_groups(layer, 0.01)
    assert only["params"][0] is layer.bias
    assert len(parameter_groups(nn.Linear(3, 2), 0.0)) == 1


def test_sharded_parameters_are_told_by_the_shape_they_had() -> None:
    """As ZeRO-3 leaves them: an empty vector, the shape beside it."""
    layer = nn.Linear(3, 2)
    for parameter in layer.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    decayed, rest = parameter_groups(layer, 0.01)
    assert decayed["params"][0] is layer.weight
    assert rest["params"][0] is layer.bias


@pytest.mark.parametrize("fused", [None, False, True])
def test_two_steps_follow_the_formula(fused: bool | None) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with both moments corrected; only the matrix decays."""
    config = OptimizerConfig(learning_rate=0.1, betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.5)
    layer = nn.Linear(3, 2).double()
    optimizer = make_optimizer(layer, config, fused)
    expected = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2):
        for name, parameter in layer.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient
            first, second = moments[name]
            first.mul_(0.8).add_(0.2 * gradient)
            second.mul_(0.9).add_(0.1 * gradient**2)
            corrected = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
            decay = 0.5 if name == "weight" else 0.0
            expected[name] -= 0.1 * (corrected + decay * expected[name])
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-12)


def test_one_kernel_is_used_where_torch_has_it() -> None:
    assert make_optimizer(nn.Linear(3, 2), OptimizerConfig()).defaults["fused"] is True
    assert make_optimizer(nn.Linear(3, 2), OptimizerConfig(), fused=False).defaults["fused"] is False
    assert make_optimizer(nn.Linear(3, 2, device="meta"), OptimizerConfig()).defaults["fused"] is False
