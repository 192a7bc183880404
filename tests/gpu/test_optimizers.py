"""Optimizers on a GPU: as on the CPU, resumed bit by bit, and without a wait for the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pipeline.optim.build import make_optimizer
from pipeline.optim.rounding import StochasticRounding
from tests.unit.optim.test_optimizers import ALL, NUM_STEPS, OWN, Blocks, config_of, expected_weights, hand_over, run

pytestmark = pytest.mark.gpu

VARIANTS = [*((name, "fp32") for name in ALL), *((name, "bf16") for name in OWN)]


@pytest.mark.parametrize(("name", "state_dtype"), VARIANTS)
def test_it_follows_its_paper(name: Any, state_dtype: Any) -> None:
    model = Blocks()
    config = config_of(name, state_dtype=state_dtype)
    start = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    expected = expected_weights(model, config)
    model.cuda()
    run(model, make_optimizer(model, config), 1, NUM_STEPS)
    exact = state_dtype == "fp32" and name != "muon"
    for key, parameter in model.named_parameters():
        error = (parameter.detach().cpu() - expected[key]).norm() / (expected[key] - start[key]).norm()
        assert error < (1e-4 if exact else 0.2 if name == "lion" else 0.03), (key, error)


@pytest.mark.parametrize(("name", "state_dtype"), VARIANTS)
def test_a_resumed_optimizer_goes_on_bit_by_bit(name: Any, state_dtype: Any) -> None:
    config = config_of(name, state_dtype=state_dtype)
    straight, model = Blocks().cuda(), Blocks().cuda()
    run(straight, make_optimizer(straight, config), 1, 20)
    first = make_optimizer(model, config)
    run(model, first, 1, 9)
    resumed = copy.deepcopy(model)
    second = make_optimizer(resumed, config)
    hand_over(first, second)
    run(resumed, second, 10, 20)
    for one, other in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "state_dtype"), VARIANTS)
def test_no_step_waits_for_the_device(name: Any, state_dtype: Any) -> None:
    model = Blocks().cuda()
    optimizer = make_optimizer(model, config_of(name, state_dtype=state_dtype))
    run(model, optimizer, 1, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rounding_keeps_the_mean() -> None:
    rounding, values = StochasticRounding(), torch.full((1_000_000,), 1.001, device="cuda")
    target = torch.empty_like(values, dtype=torch.bfloat16)
    rounding.reseed(1, 0, 0)
    rounding.store([target], [values])
    assert float(target.double().mean()) == pytest.approx(1.001, abs=5 * 2**-8 / 1000)
