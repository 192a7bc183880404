"""`benchmarks/stock_modules.py` in small: every candidate is measured, and what compares them finds a difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import stock_modules


@pytest.fixture(autouse=True)
def _the_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_modules, "use_one_core", lambda: 0)
    monkeypatch.setattr(stock_modules, "keep_freed_memory", lambda: True)


def test_every_candidate_is_measured(tmp_path: Path) -> None:
    stock_modules.main(["--quick", "--repetitions", "1", "--json", str(tmp_path / "record.json")])
    record = json.loads((tmp_path / "record.json").read_text())
    names = [result["name"] for result in record["results"]]
    assert names == ["tanh GELU as one kernel", "Q, K, V as one product", "Conv1D as a linear layer"]
    assert [row[0] for row in record["tables"]["candidates"]["rows"]] == names


def test_a_replacement_that_computes_something_else_is_found() -> None:
    blocks = {family: stock_modules.stock_block(family, stock_modules.QUICK, "cpu") for family in ("bert", "gpt2")}
    for candidate in stock_modules.candidates(blocks):
        timer = stock_modules.Timer(64, candidate.width, "cpu")
        wrong = replace(candidate, replacement=lambda hidden, one=candidate: 1.01 * one.replacement(hidden))
        with pytest.raises(AssertionError, match=f"{candidate.name} differs by"):
            stock_modules.check_equal(wrong, timer)
