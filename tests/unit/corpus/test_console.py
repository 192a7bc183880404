"""What a build shows while it runs."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.corpus import console as console_module
from pipeline.corpus.console import BuildConsole, format_amount
from pipeline.corpus.counters import TaskCounter, make_counters, total_of


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (5_683_354, "B", "5.7 MB"),
        (999, "B", "999 B"),
        (1_500, "B", "1.5 kB"),
        (3.2e13, "B", "32.0 TB"),
        (1_324_854, " tokens", "1,324,854 tokens"),
    ],
)
def test_amounts(amount: float, unit: str, text: str) -> None:
    assert format_amount(amount, unit) == text


def test_counters_of_tasks_add_up_and_start_again(tmp_path: Path) -> None:
    make_counters(tmp_path / "counters", 3)
    first, last = TaskCounter(tmp_path / "counters", 0), TaskCounter(tmp_path / "counters", 2)
    first.finish(10)
    first.set(5)
    last.finish(7)
    assert total_of(tmp_path / "counters") == 22
    make_counters(tmp_path / "counters", 3)  # an interrupted stage goes on
    TaskCounter(tmp_path / "counters", 0)  # and does its task anew
    assert total_of(tmp_path / "counters") == 7
    make_counters(tmp_path / "counters", 4)
    assert total_of(tmp_path / "counters") == 0


@pytest.mark.parametrize(("total", "text"), [(40, "Counting: 25 % (10 B of 40 B)"), (0, "Counting ...")])
def test_plain_lines_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, text: str) -> None:
    monkeypatch.setattr(console_module, "_SECONDS_BETWEEN_LINES", 0.01)
    make_counters(tmp_path / "counters", 1)
    TaskCounter(tmp_path / "counters", 0).finish(10)
    printed = io.StringIO()
    with BuildConsole(Console(file=printed)).stage("Counting", total, "B", tmp_path / "counters"):
        deadline = time.monotonic() + 30
        while not printed.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = printed.getvalue().splitlines()
    assert lines[0] == text
    assert re.fullmatch(r"Counting: (40 B in )?[\d.]+ s", lines[-1])
    assert ("40 B" in lines[-1]) == bool(total)


def test_a_stage_that_fails_is_not_reported_as_done(tmp_path: Path) -> None:
    make_counters(tmp_path / "counters", 1)
    printed = io.StringIO()
    with pytest.raises(KeyError), BuildConsole(Console(file=printed)).stage("Counting", 1, "B", tmp_path / "counters"):
        raise KeyError
    assert printed.getvalue() == ""
