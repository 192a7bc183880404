"""`benchmarks/head.py` in small: every side is measured, and what compares them finds a difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import head


@pytest.fixture(autouse=True)
def _all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "use_one_core", lambda: 0)


def test_every_side_is_measured(tmp_path: Path) -> None:
    head.main(["--quick", "--repetitions", "1", "--json", str(tmp_path / "head.json")])
    record = json.loads((tmp_path / "head.json").read_text())
    assert [result["name"] for result in record["results"]] == ["bert_time", "bert_memory", "gpt2_time", "gpt2_memory"]
    for result in record["results"]:
        assert {"ours", *result["peers"]} == set(head.contenders()) | {"ours"}


def test_another_loss_is_found() -> None:
    measured = head.Head(head.QUICK[0], "cpu")
    head.check_equal(measured)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "whole_logits", lambda *inputs: 1.01 * head.linear_cross_entropy_sum(*inputs))
        with pytest.raises(AssertionError, match="ours differs by"):
            head.check_equal(measured)


def test_whole_logits_are_seen_in_the_memory() -> None:
    case = head.Case("wide", num_positions=4096, width=8, vocabulary=8192, has_bias=False)  # 134 MB of logits
    measured = head.Head(case, "cpu")
    ours, whole = (measured.megabytes(loss_sum) for loss_sum in (head.linear_cross_entropy_sum, head.whole_logits))
    assert whole > 130
    assert ours < 0.8 * whole
