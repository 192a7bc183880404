"""The loops that are compared do the same work, and the overhead is what comes on top of the plain one."""

from __future__ import annotations

import pytest

from benchmarks import loop_overhead
from benchmarks.loop_overhead import CLOCK_REPEATS, REPEATED, measure, results_of


def test_all_loops_train_to_the_same_weights() -> None:
    names = ["PyTorch", "Lightning", "ours", REPEATED]
    spent = measure(names, warmup_steps=2, num_steps=12, repetitions=1)
    assert list(spent) == names
    assert min(min(rounds) for rounds in spent.values()) > 0


def test_a_loop_that_trains_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(model: loop_overhead.Trivial, batches: loop_overhead.Repeated) -> None:
        for _ in batches:
            pass

    monkeypatch.setitem(loop_overhead.LOOPS, "ours", lazy)
    with pytest.raises(AssertionError, match="ours trains otherwise"):
        measure(["PyTorch", "ours"], warmup_steps=2, num_steps=3, repetitions=1)


def test_overheads_are_over_the_plain_loop_of_their_round() -> None:
    clock = (CLOCK_REPEATS - 1) * 10.0  # of 10,000 microseconds
    spent = {"PyTorch": [300.0, 400.0, 900.0], "Lightning": [550.0, 650.0, 900.0], "ours": [580.0, 680.0, 980.0]}
    spent[REPEATED] = [value + clock for value in spent["ours"]]
    overhead, meters = results_of(spent)
    assert (overhead.ours, overhead.peers, overhead.met) == (280.0, {"Lightning": 250.0}, True)
    assert meters.ours == pytest.approx(0.1)
    assert meters.met
    assert not results_of({**spent, "ours": [601.0, 701.0, 1201.0]})[0].met
