"""The loops that are compared do the same work, and the overhead is what comes on top of the plain one."""

from __future__ import annotations

import pytest

from benchmarks import loop_overhead
from benchmarks.loop_overhead import measure, results_of


def test_all_loops_train_to_the_same_weights() -> None:
    names = ["PyTorch", "Lightning", "ours", "ours without its clock"]
    spent = measure(names, warmup_steps=2, num_steps=12, repetitions=1)
    assert list(spent) == names
    assert min(spent.values()) > 0


def test_a_loop_that_trains_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(model: loop_overhead.Trivial, batches: loop_overhead.Repeated) -> None:
        for _ in batches:
            pass

    monkeypatch.setitem(loop_overhead.LOOPS, "ours", lazy)
    with pytest.raises(AssertionError, match="ours trains otherwise"):
        measure(["PyTorch", "ours"], warmup_steps=2, num_steps=3, repetitions=1)


def test_overheads_are_over_the_plain_loop() -> None:
    spent = {"PyTorch": 300.0, "Lightning": 550.0, "ours": 580.0, "ours without its clock": 570.0}
    overhead, meters = results_of(spent)
    assert (overhead.ours, overhead.peers, overhead.met) == (280.0, {"Lightning": 250.0}, True)
    assert meters.ours == pytest.approx(0.1)  # 10 of 10,000 microseconds
    assert meters.met
    assert not results_of({**spent, "ours": 601.0})[0].met
