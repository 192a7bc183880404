"""The tables of the pages are those of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.tables import RESULTS, ROOT, render, render_page

RECORD = {
    "benchmark": "data",
    "machine": "A processor, 2 cores",
    "versions": {"python": "3.11"},
    "command": "python benchmarks/data.py",
    "facts": {"data": ["prose"], "skipped": {}},
    "results": [
        {
            "name": "speed",
            "unit": "tokens/s",
            "better": "higher",
            "ours": 1234.5,
            "peers": {"slow": 1.5, "slower": 0.25},
            "ratio": 823.0,
            "goal": {"ours": 2000.0, "ratio": 3.0},
            "met": False,
        },
        {
            "name": "resume",
            "unit": "s",
            "better": "lower",
            "ours": 0.01234,
            "peers": {},
            "ratio": None,
            "goal": {"ours": 0.1},
            "met": True,
        },
    ],
    "tables": {"peers": {"header": ["peer", "lacks"], "rows": [["a | b", 2.5]]}},
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "data.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return tmp_path


def test_results_with_peers(results: Path) -> None:
    assert render("data", results).splitlines() == [
        "| measured | unit | ours | best peer | other peers | ratio | goal |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| speed | tokens/s | 1,234 | 1.5 (slow) | 0.25 (slower) | 823 | ≥ 2,000, ratio ≥ 3 (missed) |",
        "| resume | s | 0.0123 |  |  |  | ≤ 0.1 |",
    ]


def test_a_part_of_the_results_a_table_and_the_machine(results: Path) -> None:
    assert render("data/resume", results).splitlines()[2:] == ["| resume | s | 0.0123 | ≤ 0.1 |"]
    assert render("data.peers", results).splitlines()[2:] == ["| a / b | 2.5 |"]
    assert render("data#machine", results) == (
        "Measured by `python benchmarks/data.py` on A processor, 2 cores; python 3.11. data: prose."
    )


def test_only_what_stands_between_the_marks_changes(results: Path) -> None:
    page = "before\n<!-- benchmark: data.peers -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    rendered = render_page(page, results)
    assert rendered.startswith("before\n<!-- benchmark: data.peers -->\n| peer | lacks |\n")
    assert rendered.endswith("|\n<!-- end -->\nafter <!-- end -->\n")
    assert render_page(rendered, results) == rendered


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "there is no benchmarks/other.py"),
        ("data.missing", "has no table 'missing'; it has peers"),
        ("data/nothing", "has no result whose name begins with 'nothing'"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str, results: Path) -> None:
    with pytest.raises(ValueError, match=message):
        render(name, results)


@pytest.mark.parametrize("name", ["gpu", "gpu.ladder_bert", "gpu#machine", "step/bert"])
def test_without_results_the_page_says_so(name: str, results: Path) -> None:
    benchmark = name[:4].rstrip(".#")
    command = f"python benchmarks/{benchmark}.py --json benchmarks/results/{benchmark}.json"
    assert render(name, results) == f"Not measured yet (`{command}`)."


def test_a_part_that_no_call_has_measured_is_not_measured_yet(results: Path) -> None:
    (results / "gpu.json").write_text(json.dumps({**RECORD, "benchmark": "gpu"}), encoding="utf-8")
    assert render("gpu.peers", results).startswith("| peer | lacks |")
    assert render("gpu/speed", results).startswith("| measured |")
    for name in ("gpu.ladder_bert", "gpu/bert"):
        assert render(name, results).startswith("Not measured yet (`python benchmarks/gpu.py")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_pages_show_the_committed_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert render_page(text, RESULTS) == text, "run `python benchmarks/tables.py`"
