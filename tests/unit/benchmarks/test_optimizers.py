"""The optimizers that are compared compute the same weights."""

from __future__ import annotations

import pytest
import torch

from benchmarks import optimizers
from benchmarks.optimizers import CONFIGS, SMALL, Loop, measure


@pytest.mark.parametrize("name", CONFIGS)
def test_both_sides_compute_the_same(name: str) -> None:
    result, kept = measure(name, SMALL, torch.device("cpu"), num_steps=1, repetitions=1)
    assert result.ours > 0
    assert set(result.peers) == (set() if name == "muon" else {"loop"})
    assert kept == pytest.approx(
        {"adamw": 8, "adamw, bf16": 4, "lamb": 8, "stable_adamw": 8, "lion": 4}.get(name, 6), rel=0.1
    )


def test_another_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.RULES, "lion", Loop.adamw)
    with pytest.raises(AssertionError, match="lion: the two sides differ"):
        measure("lion", SMALL, torch.device("cpu"), num_steps=1, repetitions=1)
