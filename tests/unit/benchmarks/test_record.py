"""Results: ratios against the best peer, goals, what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.machine import interleaved
from benchmarks.record import Goal, Result, Table, significant, write_record


@pytest.mark.parametrize(
    ("better", "ours", "peers", "best", "ratio"),
    [
        ("higher", 60.0, {"a": 2.0, "b": 3.0}, "b", 20.0),
        ("lower", 0.5, {"a": 2.0, "b": 3.0}, "a", 4.0),
        ("lower", 4.0, {"a": 2.0}, "a", 0.5),
        ("higher", 60.0, {}, None, None),
    ],
)
def test_ratio_is_above_one_where_ours_is_better(better, ours, peers, best, ratio) -> None:
    result = Result("name", "unit", better, ours, peers)
    assert result.best_peer == best
    assert result.ratio == ratio


@pytest.mark.parametrize(
    ("better", "goal", "met"),
    [
        ("higher", Goal(), None),
        ("higher", Goal(ours=10.0), True),
        ("higher", Goal(ours=10.1), False),
        ("lower", Goal(ours=10.0), True),
        ("lower", Goal(ours=9.9), False),
        ("higher", Goal(ours=5.0, ratio=2.0), True),
        ("higher", Goal(ours=5.0, ratio=2.1), False),
    ],
)
def test_goals(better, goal, met) -> None:
    assert Result("name", "unit", better, 10.0, {"peer": 5.0}, goal).met is met


def test_a_goal_of_a_ratio_is_missed_without_peers() -> None:
    assert Result("name", "unit", "higher", 10.0, {}, Goal(ratio=2.0)).met is False


def test_the_file_has_the_agreed_keys_and_no_path(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "benchmarks" / "data.py"), "--quick"])
    result = Result("speed", "tokens/s", "higher", 123_456.0, {"peer": 3.0}, Goal(ours=1.0))
    write_record(Path("out.json"), "data", {"python": "3"}, [result], {"more": Table(["a"], [[1.5]])}, {"fact": "x"})
    record = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert record["command"] == "python benchmarks/data.py --quick"
    assert str(tmp_path) not in json.dumps(record)
    assert record["results"] == [
        {
            "name": "speed",
            "unit": "tokens/s",
            "better": "higher",
            "ours": 123_500.0,
            "peers": {"peer": 3.0},
            "ratio": 41_150.0,
            "goal": {"ours": 1.0},
            "met": True,
        }
    ]
    assert record["tables"] == {"more": {"header": ["a"], "rows": [[1.5]]}}
    assert "41150" in capsys.readouterr().out.replace(",", "").replace("4.12e+04", "41150")


def test_significant_digits() -> None:
    assert significant(0.00123456) == 0.001235
    assert significant(98_765.4) == 98_770.0


def test_every_contender_has_its_turn_in_every_round() -> None:
    turns: list[str] = []

    def contender(name: str):
        return lambda: float(turns.append(name) or len(turns))

    measured = interleaved({name: contender(name) for name in "abc"}, 4)
    assert [len(values) for values in measured.values()] == [4, 4, 4]
    assert all(set(turns[first : first + 3]) == set("abc") for first in range(0, 12, 3))
    assert len({tuple(turns[first : first + 3]) for first in range(0, 12, 3)}) > 1
