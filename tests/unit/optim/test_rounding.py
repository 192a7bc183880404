"""Stochastic rounding: its mean, its neighbours, its determinism."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.optim.rounding import StochasticRounding


def rounded(values: Tensor, step: int = 1, group: int = 0, chunk: int = 0) -> Tensor:
    rounding = StochasticRounding()
    rounding.reseed(step, group, chunk)
    target = torch.empty_like(values, dtype=torch.bfloat16)
    rounding.store([target], [values])
    return target


@pytest.mark.parametrize("value", [1.001, -1.001, 3.1e-20, -7.77e12, 1 + 2**-9])
def test_the_mean_is_the_value_and_only_its_neighbours_come(value: float) -> None:
    num_draws = 200_000
    exact = torch.full((num_draws,), value)
    drawn = rounded(exact).double()
    lower, upper = drawn.min(), drawn.max()
    assert set(drawn.unique().tolist()) == {float(lower), float(upper)}
    gap = float(upper - lower)
    assert lower < exact[0].double() < upper
    assert gap <= abs(value) * 2**-7
    # Five standard deviations of a mean of two values.
    assert abs(float(drawn.mean() - exact[0].double())) < 5 * gap / 2 / num_draws**0.5


def test_numbers_of_bf16_and_what_is_no_number_stay() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e-38, float("inf"), -float("inf"), float("nan")])
    values = values.bfloat16().float()
    for step in range(20):
        assert torch.equal(rounded(values, step).view(torch.int16), values.bfloat16().view(torch.int16))


def test_no_nan_becomes_a_number() -> None:
    """All of the bits below bf16's are set: 0x7fffffff is what a GPU computes."""
    values = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert all(rounded(values, step).isnan().all() for step in range(20))


def test_bits_depend_on_step_group_and_place_alone() -> None:
    values = torch.linspace(1, 2, 1000)
    state = torch.random.get_rng_state()
    first = rounded(values, 3, 1, 2)
    assert torch.equal(first, rounded(values, 3, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [rounded(values, *place) for place in ((4, 1, 2), (3, 2, 2), (3, 1, 3))]
    assert all(not torch.equal(first, other) for other in others)


def test_a_generator_that_was_used_begins_anew() -> None:
    rounding, values = StochasticRounding(), torch.linspace(1, 2, 1000)
    targets = [torch.empty(1000, dtype=torch.bfloat16) for _ in range(2)]
    for target in targets:
        rounding.reseed(5, 0, 0)
        rounding.store([target], [values])
    assert torch.equal(*targets)


def test_a_slow_mean_moves_where_nearest_rounding_stands_still() -> None:
    """A second moment of 1 with a decay of 0.999, fed with gradients of size 0.5."""
    stochastic = nearest = torch.ones(4096, dtype=torch.bfloat16)
    rounding = StochasticRounding()
    for step in range(1, 301):
        nearest = (nearest.float() * 0.999 + 0.001 * 0.25).bfloat16()
        exact = stochastic.float() * 0.999 + 0.001 * 0.25
        stochastic = torch.empty_like(stochastic)
        rounding.reseed(step, 0, 0)
        rounding.store([stochastic], [exact])
    truth = 0.25 + 0.75 * 0.999**300
    assert float(nearest.float().mean()) == 1.0
    assert float(stochastic.float().mean()) == pytest.approx(truth, abs=0.01)
