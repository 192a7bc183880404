"""Tables of the pages in `docs/` from the results of the benchmarks: `python benchmarks/tables.py [--check]`.

Between `<!-- benchmark: NAME -->` and `<!-- end -->` stands what is rendered from `benchmarks/results/`, where NAME is

- `data`: the results of `data.json`; `data/resume`: those whose name begins with `resume`;
- `data.peers`: its table `peers`;
- `data#machine`: one line on where it was measured.

Where there are no results, the page says that nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
IN_PARTS: Final = ("gpu", "step")
"""Benchmarks that may be run in parts (`--only`): some tables may be missing."""

_BLOCK: Final = re.compile(r"(<!-- benchmark: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrite the tables of all pages; with `--check`, only say which are out of date and exit with 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is out of date")
    options = parser.parse_args()
    stale = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        rendered = render_page(text, RESULTS)
        if rendered != text:
            stale.append(page.name)
            if not options.check:
                page.write_text(rendered, encoding="utf-8")
    print(f"{'out of date' if options.check else 'rewritten'}: {', '.join(stale) or 'none'}")
    sys.exit(1 if options.check and stale else 0)


def render_page(text: str, results: Path) -> str:
    """The page with every marked table rendered anew."""
    return _BLOCK.sub(lambda block: f"{block[1]}{render(block[2], results)}\n{block[3]}", text)


def render(name: str, results: Path) -> str:
    """What stands under a marker: a table, a line, or that nothing was measured.

    Raises:
        ValueError: there is no such benchmark, or no such table in its results.
    """
    benchmark = re.split(r"[/.#]", name, maxsplit=1)[0]
    kind, part = name[len(benchmark) : len(benchmark) + 1], name[len(benchmark) + 1 :]
    if not (ROOT / "benchmarks" / f"{benchmark}.py").is_file():
        raise ValueError(f"{name}: there is no benchmarks/{benchmark}.py")
    path = results / f"{benchmark}.json"
    not_measured = f"Not measured yet (`python benchmarks/{benchmark}.py --json benchmarks/results/{benchmark}.json`)."
    if not path.is_file():
        return not_measured
    record = json.loads(path.read_text(encoding="utf-8"))
    if kind == ".":
        if part not in record["tables"]:
            if benchmark in IN_PARTS:
                return not_measured
            raise ValueError(f"{name}: {path.name} has no table {part!r}; it has {', '.join(record['tables'])}")
        table = record["tables"][part]
        return _markdown(table["header"], table["rows"])
    if kind == "#":
        return _machine(record)
    chosen = [result for result in record["results"] if result["name"].startswith(part)]
    if not chosen:
        if benchmark in IN_PARTS:
            return not_measured
        raise ValueError(f"{name}: {path.name} has no result whose name begins with {part!r}")
    return _results(chosen)


def _results(results: list[Mapping[str, Any]]) -> str:
    with_peers = any(result["peers"] for result in results)
    header = ["measured", "unit", "ours", *(["best peer", "other peers", "ratio"] if with_peers else []), "goal"]
    rows = []
    for result in results:
        cells = [result["name"], result["unit"], _number(result["ours"])]
        if with_peers:
            cells += _peers(result)
        rows.append([*cells, _goal(result)])
    return _markdown(header, rows)


def _peers(result: Mapping[str, Any]) -> list[str]:
    ranked = sorted(result["peers"].items(), key=lambda peer: peer[1], reverse=result["better"] == "higher")
    named = [f"{_number(value)} ({name})" for name, value in ranked]
    ratio = "" if result["ratio"] is None else _number(result["ratio"])
    return [named[0] if named else "", ", ".join(named[1:]), ratio]


def _goal(result: Mapping[str, Any]) -> str:
    goal = result["goal"]
    sign = "≥" if result["better"] == "higher" else "≤"
    parts = [f"{sign} {_number(goal['ours'])}"] if "ours" in goal else []
    parts += [f"ratio ≥ {_number(goal['ratio'])}"] if "ratio" in goal else []
    return ", ".join(parts) + ("" if result["met"] is not False else " (missed)")


def _machine(record: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    facts = "; ".join(f"{name}: {_fact(fact)}" for name, fact in record["facts"].items() if fact not in ({}, [], ""))
    return f"Measured by `{record['command']}` on {record['machine']}; {packages}. {facts}."


def _fact(fact: Any) -> str:
    if isinstance(fact, Mapping):
        return ", ".join(f"{name} ({text})" for name, text in fact.items())
    return "; ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def _number(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
