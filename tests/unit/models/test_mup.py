"""muP: the coordinate check, and that it is the model with divided logits."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.optimization import OptimizerConfig, OptimizerName
from pipeline.config.run import Family, ModelConfig
from pipeline.models.build import build_model
from pipeline.models.families import FAMILIES as TABLE
from pipeline.models.mup import mup_scales
from pipeline.models.packed import packed_logits
from pipeline.optim.build import make_optimizer
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

CASE = PackedCase([[20, 12], [32], [7, 9, 16], [30, 2]])
_LAST_BLOCK = "encoder.layer.1."
WATCHED = {
    "bert": ("bert.embeddings", f"bert.{_LAST_BLOCK}intermediate.dense", f"bert.{_LAST_BLOCK}output.dense",
             "cls.predictions.decoder"),
    "roberta": ("roberta.embeddings", f"roberta.{_LAST_BLOCK}intermediate.dense", f"roberta.{_LAST_BLOCK}output.dense",
                "lm_head.decoder"),
    "gpt2": ("transformer.drop", "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj", "lm_head"),
}  # fmt: skip
"""Embeddings, what two matrices give (norms would hide their size), logits."""


PROPORTIONED = [family for family in FAMILIES if family not in ("albert", "electra")]
"""A config that asks for it in the last two, whose embeddings have a width of their own, is refused."""

LAST_NORMS = tuple(TABLE[family].output_norm for family in PROPORTIONED)


def model_of_width(family: Family, width: int, base: int | None) -> tuple[Any, ModelConfig]:
    config = tiny_config(
        family,
        hidden_size=width,
        num_heads=width // 16,
        intermediate_size=2 * width,
        initializer_range=0.02,
        mup_base_width=base,
    )
    return build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=1), config


def logits_of(model: nn.Module) -> Tensor:
    return packed_logits(model, CASE.input_ids, CASE.position_ids, CASE.cu_seqlens, 32, CASE.predicted)


def activations(model: nn.Module, family: Family) -> dict[str, Tensor]:
    """Outputs of the watched modules."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        seen[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

    hooks = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in WATCHED[family]]
    with torch.no_grad():
        logits_of(model)
    for hook in hooks:
        hook.remove()
    return seen


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits_of(model), CASE.labels).backward()
        optimizer.step()


def sizes_and_changes(
    family: Family, width: int, base: int | None, name: OptimizerName
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean size of the watched activations at the start, and mean change over four steps."""
    model, config = model_of_width(family, width, base)
    rate = 1e-3 if name == "lion" else 4e-3
    optimizer = make_optimizer(
        model,
        OptimizerConfig(name=name, learning_rate=rate),
        mup_scales=mup_scales(model, config) if base is not None else None,
    )
    before = activations(model, family)
    train(model, optimizer, 4)
    after = activations(model, family)
    sizes = {key: float(value.abs().mean()) for key, value in before.items()}
    return sizes, {key: float((after[key] - before[key]).abs().mean()) for key in before}


@pytest.mark.parametrize(
    ("family", "name"), [("bert", "adamw"), ("roberta", "stable_adamw"), ("gpt2", "adamw"), ("gpt2", "lion")]
)
def test_coordinates_change_alike_at_every_width(family: Family, name: OptimizerName) -> None:
    """The check of Yang et al. 2022, appendix D.1: with muP activations begin as large at width 512 as at 64, and a few
    steps move them as far; without it blocks and logits move the farther the wider the model is."""
    widths = (64, 128, 256, 512)
    sizes, changes = zip(*(sizes_and_changes(family, width, 64, name) for width in widths), strict=True)
    stock_sizes, stock = zip(*(sizes_and_changes(family, width, None, name) for width in widths), strict=True)
    assert (sizes[0], changes[0]) == (stock_sizes[0], stock[0])
    embeddings, *matrices, logits = WATCHED[family]
    for key in (embeddings, *matrices):
        assert [row[key] for row in sizes] == pytest.approx([sizes[0][key]] * 4, rel=0.15), sizes
    assert sizes[-1][logits] < 0.5 * sizes[0][logits]  # they begin at 0 in the limit of an infinite width
    for key in WATCHED[family]:  # a little less: what is left of the random start averages out
        assert 0.5 < changes[-1][key] / changes[0][key] < 1.1, (key, changes)
    for key in (*matrices, logits):
        assert all(wide[key] > narrow[key] for narrow, wide in pairwise(stock)), (key, stock)
        assert stock[-1][key] > 2.5 * stock[0][key], (key, stock)


@pytest.mark.parametrize("family", PROPORTIONED)
def test_it_trains_as_the_model_with_divided_logits(family: Family) -> None:
    """The scale folded into the last norm is the output multiplier of the paper's table 8, step by step."""
    model, config = model_of_width(family, 128, 32)
    settings = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, epsilon=1e-30)
    reference = model_of_width(family, 128, None)[0].double()
    model.double()
    matrices = {name for name, p in reference.named_parameters() if p.ndim > 1 and "embed" not in name}
    matrices -= {"transformer.wte.weight", "transformer.wpe.weight"}
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name in matrices:
                parameter.div_(2)
    decoder = reference.get_output_embeddings()
    decoder.register_forward_pre_hook(lambda module, arguments: (arguments[0] / 4,))
    plain = [
        {"params": [p], "lr": 3e-3 / (4 if name in matrices else 1), "weight_decay": decay}
        for name, p in reference.named_parameters()
        for decay in [0.4 if name in matrices else 0.1 if p.ndim > 1 else 0.0]
    ]
    train(reference, torch.optim.AdamW(plain, eps=1e-30), 6)
    train(model, make_optimizer(model, settings, mup_scales=mup_scales(model, config)), 6)
    torch.testing.assert_close(logits_of(model), logits_of(reference), rtol=1e-6, atol=1e-7)
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        if name in matrices:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("family", PROPORTIONED)
def test_the_base_is_the_stock_model(family: Family) -> None:
    base, config = model_of_width(family, 64, 64)
    for one, other in zip(base.parameters(), model_of_width(family, 64, None)[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert set(mup_scales(base, config).values()) == {1.0}


@pytest.mark.parametrize("family", PROPORTIONED)
def test_what_is_scaled(family: Family) -> None:
    """Matrices and the last norm, the first in variance; the rates of both."""
    model, config = model_of_width(family, 128, 32)
    stock = dict(model_of_width(family, 128, None)[0].named_parameters())
    scales = mup_scales(model, config)
    for name, parameter in model.named_parameters():
        last_norm = name.startswith(LAST_NORMS)
        matrix = parameter.ndim > 1 and not name.startswith("transformer.w") and "embeddings" not in name
        factor = 0.25 if last_norm else 0.5 if matrix else 1.0
        torch.testing.assert_close(parameter, stock[name] * factor, rtol=1e-6, atol=0, msg=name)
        assert scales[name] == (0.25 if last_norm or matrix else 1.0), name
