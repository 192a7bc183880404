"""Parameter groups: decay, depth, patterns, scales of muP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.optimization import OptimizerConfig, ParameterGroupConfig
from pipeline.config.run import Family, ModelConfig
from pipeline.models.build import build_model
from pipeline.models.families import FAMILIES
from pipeline.optim.build import make_optimizer
from pipeline.optim.groups import parameter_groups, unused_patterns

SPECIAL_IDS = {"pad": 1, "cls": 0, "sep": 2, "mask": 4, "bos": 0, "eos": 2, "unk": 3}


def tiny_model(family: Family, num_layers: int = 1) -> nn.Module:
    config = ModelConfig(
        family=family, hidden_size=8, num_layers=num_layers, num_heads=2, intermediate_size=16, max_positions=16
    )
    return build_model(config, vocab_size=20, special_ids=SPECIAL_IDS, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_embeddings_decay_biases_and_norms_do_not(family: Family) -> None:
    model = tiny_model(family)
    decayed, rest = parameter_groups(model, OptimizerConfig())
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name in (names[id(parameter)] for parameter in decayed["params"]):
        assert name.endswith("weight")
        assert "norm" not in name.lower()
        assert "ln_" not in name
    for name in (names[id(parameter)] for parameter in rest["params"]):
        assert name.endswith("bias") or "norm" in name.lower() or ".ln_" in name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_in_one_group_once(family: Family) -> None:
    model = tiny_model(family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    members = [id(parameter) for group in parameter_groups(model, OptimizerConfig()) for parameter in group["params"]]
    assert sorted(members) == sorted({id(parameter) for parameter in model.parameters()})


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    (only,) = parameter_groups(layer, OptimizerConfig())
    assert only["params"][0] is layer.bias
    assert len(parameter_groups(nn.Linear(3, 2), OptimizerConfig(weight_decay=0.0))) == 1


def test_sharded_parameters_are_told_by_the_shape_they_had() -> None:
    """As ZeRO-3 leaves them: an empty vector, the shape beside it."""
    layer = nn.Linear(3, 2)
    for parameter in layer.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    decayed, rest = parameter_groups(layer, OptimizerConfig())
    assert decayed["params"][0] is layer.weight
    assert rest["params"][0] is layer.bias


def test_one_kernel_is_used_where_torch_has_it() -> None:
    assert make_optimizer(nn.Linear(3, 2), OptimizerConfig()).defaults["fused"] is True
    assert make_optimizer(nn.Linear(3, 2), OptimizerConfig(), fused=False).defaults["fused"] is False
    assert make_optimizer(nn.Linear(3, 2, device="meta"), OptimizerConfig()).defaults["fused"] is False


def scales_of(model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    """Learning-rate scale of every parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr_scale"] for group in parameter_groups(model, config) for p in group["params"]}


@pytest.mark.parametrize(
    ("family", "depths"),
    [
        (
            "bert",
            {
                "bert.embeddings.word_embeddings.weight": 0,
                "bert.embeddings.LayerNorm.bias": 0,
                "bert.encoder.layer.0.attention.self.query.weight": 1,
                "bert.encoder.layer.1.output.LayerNorm.weight": 2,
                "cls.predictions.transform.dense.weight": 3,
                "cls.predictions.bias": 3,
            },
        ),
        (
            "roberta",
            {
                "roberta.embeddings.position_embeddings.weight": 0,
                "roberta.embeddings.LayerNorm.weight": 0,
                "roberta.encoder.layer.0.output.dense.bias": 1,
                "roberta.encoder.layer.1.attention.output.LayerNorm.weight": 2,
                "lm_head.dense.weight": 3,
                "lm_head.bias": 3,
            },
        ),
        (
            "gpt2",
            {
                "transformer.wte.weight": 0,
                "transformer.wpe.weight": 0,
                "transformer.h.0.attn.c_attn.weight": 1,
                "transformer.h.1.mlp.c_proj.bias": 2,
                "transformer.ln_f.weight": 3,
            },
        ),
    ],
)
def test_the_rate_decays_from_the_head_to_the_embeddings(family: Family, depths: dict[str, int]) -> None:
    scales = scales_of(tiny_model(family, num_layers=2), OptimizerConfig(layer_lr_decay=0.5))
    for name, depth in depths.items():
        assert scales[name] == 0.5 ** (3 - depth), name
    assert set(scales.values()) == {1.0, 0.5, 0.25, 0.125}


def test_the_first_matching_group_counts() -> None:
    patterns = [
        ParameterGroupConfig("*.embeddings.*", learning_rate_scale=0.1),
        ParameterGroupConfig("*.bias", weight_decay=0.7),
        ParameterGroupConfig("*embeddings.LayerNorm.bias", learning_rate_scale=9.0),
    ]
    config = OptimizerConfig(groups=patterns)
    model = tiny_model("bert")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, config)
        for p in group["params"]
    }
    assert settings["bert.embeddings.word_embeddings.weight"] == (0.1, 0.01)
    assert settings["bert.embeddings.LayerNorm.bias"] == (0.1, 0.0)
    assert settings["bert.encoder.layer.0.output.dense.bias"] == (1.0, 0.7)
    assert settings["bert.encoder.layer.0.output.dense.weight"] == (1.0, 0.01)
    assert unused_patterns(model, config) == ["*embeddings.LayerNorm.bias"]


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    model = tiny_model("bert")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (matrices,) = (g for g in parameter_groups(model, OptimizerConfig(name="muon")) if g["rule"] == "muon")
    assert {names[id(p)].removeprefix("bert.encoder.layer.0.") for p in matrices["params"]} == {
        "attention.self.query.weight",
        "attention.self.key.weight",
        "attention.self.value.weight",
        "attention.output.dense.weight",
        "intermediate.dense.weight",
        "output.dense.weight",
    }


def test_scales_of_mup_multiply_and_leave_the_decay_of_a_step_as_it_is() -> None:
    layer = nn.Linear(3, 2)
    groups = parameter_groups(layer, OptimizerConfig(weight_decay=0.1), {"weight": 0.25})
    weight, bias = groups
    assert (weight["lr_scale"], weight["weight_decay"]) == (0.25, 0.4)
    assert (bias["lr_scale"], bias["weight_decay"]) == (1.0, 0.0)
    own = OptimizerConfig(groups=[ParameterGroupConfig("*", learning_rate_scale=0.5, weight_decay=0.3)])
    weight, bias = parameter_groups(layer, own, {"weight": 0.25})
    assert (weight["lr_scale"], weight["weight_decay"]) == (0.125, 1.2)
    assert (bias["lr_scale"], bias["weight_decay"]) == (0.5, 0.3)
