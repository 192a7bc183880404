"""Every optimizer against its paper's formulas, over tens of steps, with groups of their own rates and decays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.optimization import (
    OptimizerConfig,
    OptimizerName,
    ParameterGroupConfig,
    betas_of,
    epsilon_of,
    momentum_of,
)
from pipeline.optim.build import make_optimizer
from pipeline.optim.rounding import StochasticRounding
from pipeline.optim.state import parameter_state, state_names
from tests.unit.optim import references

OWN: tuple[OptimizerName, ...] = ("adamw", "lamb", "stable_adamw", "lion")
ALL: tuple[OptimizerName, ...] = (*OWN, "muon")
NUM_STEPS = 40


class Blocks(nn.Module):
    """An embedding, two blocks, a norm: the kinds of parameters that a model has; names as transformers gives them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.ModuleDict({"words": nn.Embedding(7, 4)})
        self.layer = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
        self.norm = nn.LayerNorm(4)


def config_of(name: OptimizerName, **values: Any) -> OptimizerConfig:
    groups = [ParameterGroupConfig("layer.1.*", learning_rate_scale=0.5, weight_decay=0.3)]
    return OptimizerConfig(name=name, learning_rate=0.02, weight_decay=0.1, groups=groups, **values)


def gradients(step: int, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Of changing size, with a spike, so that second moments lag and StableAdamW clips."""
    generator = torch.Generator().manual_seed(step)
    size = 50.0 if step == 20 else 1 + step % 3
    return [size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]


def hand_over(saved: torch.optim.Optimizer, resumed: torch.optim.Optimizer) -> None:
    """Give an optimizer that has not stepped yet the state of another, as a checkpoint does."""
    for groups in zip(saved.param_groups, resumed.param_groups, strict=True):
        for parameters in zip(*(group["params"] for group in groups), strict=True):
            of_saved, of_resumed = map(parameter_state, (saved, resumed), groups, parameters)
            assert set(of_saved.moments) == set(of_resumed.moments) == set(state_names(resumed, groups[1]))
            for name, moment in of_saved.moments.items():
                assert not of_resumed.moments[name].any()
                of_resumed.moments[name].copy_(moment)
            if of_resumed.counter is not None:
                assert of_saved.counter is not None
                of_resumed.counter["step"] = copy.deepcopy(of_saved.counter["step"])


def run(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps ``first`` .. ``last`` with rates that change."""
    parameters = list(model.parameters())
    for step in range(first, last + 1):
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = 0.02 / step**0.5 * group["lr_scale"]
        optimizer.step()


def expected_weights(model: nn.Module, config: OptimizerConfig) -> dict[str, Tensor]:
    """The same steps by the formulas of the papers."""
    (beta1, beta2), eps = betas_of(config), epsilon_of(config)
    settings = {"beta1": beta1, "beta2": beta2, "eps": eps, "momentum": momentum_of(config)}
    names = [name for name, _ in model.named_parameters()]
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for step in range(1, NUM_STEPS + 1):
        for name, gradient in zip(names, gradients(step, list(model.parameters())), strict=True):
            own = name.startswith("layer.1.")
            decay = 0.3 if own else 0.1 if weights[name].ndim > 1 else 0.0
            rate = 0.02 / step**0.5 * (0.5 if own else 1.0)
            rule = references.RULES.get(config.name, references.adamw)
            if config.name == "muon" and name.startswith("layer.") and weights[name].ndim > 1:
                rule = references.muon
            arguments = {**settings, "lr": rate, "decay": decay}
            weights[name] = rule(weights[name], gradient, states[name], step, arguments)
    return weights


@pytest.mark.parametrize(("name", "epsilon"), [*((name, None) for name in OWN), ("lamb", 2.0), ("stable_adamw", 2.0)])
def test_it_follows_its_paper(name: OptimizerName, epsilon: float | None) -> None:
    """Also where epsilon is larger than the roots of most second moments."""
    model = Blocks().double()
    config = config_of(name, epsilon=epsilon)
    expected = expected_weights(model, config)
    run(model, make_optimizer(model, config), 1, NUM_STEPS)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[key], rtol=1e-10, atol=1e-12, msg=key)


def test_muon_is_for_matrices_of_blocks_and_adamw_for_the_rest() -> None:
    """In fp32: Newton-Schulz runs in bf16, where an order of additions shows in the third digit."""
    model = Blocks()
    expected = expected_weights(model, config_of("muon"))
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    run(model, make_optimizer(model, config_of("muon")), 1, NUM_STEPS)
    for key, parameter in model.named_parameters():
        moved = (expected[key] - before[key]).norm()
        limit = 0.02 if key in ("layer.0.weight", "layer.1.weight") else 1e-5
        assert (parameter.detach() - expected[key]).norm() < limit * moved, key


@pytest.mark.parametrize("name", OWN)
def test_bf16_states_follow_fp32(name: OptimizerName) -> None:
    """The moments are the paper's but for rounding to 8 bits; with nearest rounding AdamW's would stand still."""
    model = Blocks()
    expected = expected_weights(model, config_of(name))
    start = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, config_of(name, state_dtype="bf16"))
    run(model, optimizer, 1, NUM_STEPS)
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in kept} == {torch.bfloat16}
    errors = {
        key: float((parameter.detach() - expected[key]).norm() / (expected[key] - start[key]).norm())
        for key, parameter in model.named_parameters()
    }
    # Lion steps by signs: one that rounding turns is a whole step.
    assert 0 < max(errors.values()) < (0.2 if name == "lion" else 0.03), errors


@pytest.mark.parametrize(
    ("name", "state_dtype"), [*((name, "fp32") for name in ALL), *((name, "bf16") for name in OWN)]
)
def test_a_resumed_optimizer_goes_on_bit_by_bit(name: OptimizerName, state_dtype: Any) -> None:
    config = config_of(name, state_dtype=state_dtype)
    straight, model = Blocks(), Blocks()
    run(straight, make_optimizer(straight, config), 1, NUM_STEPS)
    first = make_optimizer(model, config)
    run(model, first, 1, 17)
    resumed = Blocks()
    resumed.load_state_dict(model.state_dict())
    second = make_optimizer(resumed, config)
    hand_over(first, second)
    run(resumed, second, 18, NUM_STEPS)
    for (key, parameter), expected in zip(resumed.named_parameters(), straight.parameters(), strict=True):
        assert torch.equal(parameter, expected), key
    states = [[state[key].dtype for key in sorted(state)] for state in second.state.values()]
    assert states == [[state[key].dtype for key in sorted(state)] for state in first.state.values()]


def test_every_step_group_and_list_is_rounded_by_bits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits again would round the same elements down for ever."""
    model = Blocks()
    places: list[tuple[int, ...]] = []
    reseed = StochasticRounding.reseed

    def noted(rounding: StochasticRounding, *place: int) -> None:
        places.append(place)
        reseed(rounding, *place)

    monkeypatch.setattr(StochasticRounding, "reseed", noted)
    monkeypatch.setattr("pipeline.optim.foreach._CPU_CHUNK_ELEMENTS", 5)
    run(model, make_optimizer(model, config_of("lamb", state_dtype="bf16")), 1, 3)
    assert len(set(places)) == len(places)
    steps, groups, lists = (set(numbers) for numbers in zip(*places, strict=True))
    assert steps == {1, 2, 3}
    assert len(groups) > 1
    assert len(lists) > 1


@pytest.mark.parametrize("name", OWN)
def test_many_small_lists_give_what_one_list_gives(name: OptimizerName, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = Blocks(), Blocks()
    config = config_of(name)
    run(whole, make_optimizer(whole, config), 1, 5)
    monkeypatch.setattr("pipeline.optim.foreach._CPU_CHUNK_ELEMENTS", 5)
    run(cut, make_optimizer(cut, config), 1, 5)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "state_dtype"), [("lion", "fp32"), ("lion", "bf16"), ("adamw", "bf16")])
def test_a_long_tensor_is_updated_in_pieces(
    name: OptimizerName, state_dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ZeRO's slice of the whole model: temporary memory must not be that of the model."""
    model = nn.ParameterList([torch.linspace(-1, 1, 13), torch.linspace(-1, 1, 14).view(7, 2)])
    optimizer = make_optimizer(model, OptimizerConfig(name=name, learning_rate=0.1, state_dtype=state_dtype))
    sizes: list[int] = []
    update = optimizer.update

    def noted(group: Any, parameters: list[Tensor], *rest: Any) -> None:
        sizes.append(sum(parameter.numel() for parameter in parameters))
        update(group, parameters, *rest)

    monkeypatch.setattr(optimizer, "update", noted)
    monkeypatch.setattr("pipeline.optim.foreach._CPU_CHUNK_ELEMENTS", 5)
    before = [parameter.detach().clone() for parameter in model]
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert sizes == [5, 5, 3, 5, 5, 4]
    for parameter, old in zip(model, before, strict=True):
        decay = 0.01 if parameter.ndim > 1 else 0.0
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.1 * decay) - 0.1)


@pytest.mark.parametrize("name", ALL)
def test_a_closure_is_run_with_gradients_and_parameters_without_one_stay(name: OptimizerName) -> None:
    model = Blocks()
    optimizer = make_optimizer(model, config_of(name))
    before = copy.deepcopy(model.state_dict())

    def closure() -> Tensor:
        loss = model.layer[0](torch.ones(2, 4)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"layer.0.weight", "layer.0.bias"}


def test_a_trust_ratio_needs_two_norms() -> None:
    """Weights of 0 take Adam's step; weights whose update is 0 stay."""
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    nn.init.zeros_(layers[0].weight)
    optimizer = make_optimizer(layers, OptimizerConfig(name="lamb", learning_rate=0.1, weight_decay=0.0))
    for parameter in layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    layers[0].weight.grad = torch.ones(2, 2)
    still = layers[1].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(layers[0].weight.detach(), torch.full((2, 2), -0.1), rtol=1e-4, atol=0)
    assert torch.equal(layers[1].weight, still)
