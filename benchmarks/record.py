"""What a benchmark writes: the JSON described in `docs/development.md`, and the same as a table on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import describe

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Goal:
    """What a result must reach; None asks for nothing."""

    ours: float | None = None
    """At least this (or at most, where lower is better)."""

    ratio: float | None = None
    """At least so many times as good as the best peer."""


@dataclass(frozen=True)
class Result:
    """One measured quantity, ours beside the peers'."""

    name: str
    unit: str
    better: Better
    ours: float
    peers: Mapping[str, float] = field(default_factory=dict)
    goal: Goal = Goal()

    @property
    def best_peer(self) -> str | None:
        """Name of the best peer."""
        if not self.peers:
            return None
        choose = max if self.better == "higher" else min
        return choose(self.peers, key=lambda name: self.peers[name])

    @property
    def ratio(self) -> float | None:
        """Ours against the best peer, above 1 where ours is better."""
        best = self.best_peer
        if best is None or not self.ours or not self.peers[best]:
            return None
        return self.ours / self.peers[best] if self.better == "higher" else self.peers[best] / self.ours

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        checks = []
        if self.goal.ours is not None:
            checks.append(self.ours >= self.goal.ours if self.better == "higher" else self.ours <= self.goal.ours)
        if self.goal.ratio is not None:
            checks.append(self.ratio is not None and self.ratio >= self.goal.ratio)
        return all(checks) if checks else None

    def as_json(self) -> dict[str, Any]:
        """The object of this result in the file."""
        return {
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            "ours": significant(self.ours),
            "peers": {name: significant(value) for name, value in self.peers.items()},
            "ratio": None if self.ratio is None else significant(self.ratio),
            "goal": {name: value for name, value in vars(self.goal).items() if value is not None},
            "met": self.met,
        }


@dataclass(frozen=True)
class Table:
    """A table that is no comparison with peers: cells are numbers or words."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many significant digits: more would be noise."""
    return float(f"{value:.{digits}g}")


def make_record(
    benchmark: str,
    versions: Mapping[str, str],
    results: Sequence[Result],
    tables: Mapping[str, Table] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The object of the file.

    Args:
        facts: anything else that a reader must know, such as the data used.
    """
    return {
        "benchmark": benchmark,
        "machine": describe(),
        "versions": dict(versions),
        "command": " ".join(["python", *_shown_command()]),
        "facts": dict(facts or {}),
        "results": [result.as_json() for result in results],
        "tables": {name: {"header": table.header, "rows": table.rows} for name, table in (tables or {}).items()},
    }


def _shown_command() -> list[str]:
    """The program, relative to where it was started if it lies below, and its arguments."""
    program = Path(sys.argv[0]).resolve()
    here = Path.cwd()
    return [str(program.relative_to(here)) if program.is_relative_to(here) else program.name, *sys.argv[1:]]


def write_record(
    path: Path | None,
    benchmark: str,
    versions: Mapping[str, str],
    results: Sequence[Result],
    tables: Mapping[str, Table] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Print the results, and write them to ``path`` if there is one; see :func:`make_record`."""
    record = make_record(benchmark, versions, results, tables, facts)
    print_record(record)
    if path is not None:
        _write(path, record)


def join_record(
    path: Path | None,
    benchmark: str,
    versions: Mapping[str, str],
    results: Sequence[Result],
    tables: Mapping[str, Table],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The results together with those of earlier calls in ``path``, written there if it is given.

    What is measured again takes the place of what was there. A file from another machine or of other versions is
    begun anew: a table must not mix them. ``facts["skipped"]``, what could not be measured by name, is joined too.
    """
    record = make_record(benchmark, versions, results, tables, facts)
    if path is None:
        return record
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old[name] == record[name] for name in ("benchmark", "machine", "versions")):
            record = _joined(old, record)
    _write(path, record)
    return record


def _joined(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    names = {result["name"] for result in new["results"]}
    commands = [*old["command"].split(" ; "), new["command"]]
    skipped = {
        name: why for name, why in old["facts"].get("skipped", {}).items() if name.split(",")[0] not in new["tables"]
    }
    return {
        **new,
        "command": " ; ".join(dict.fromkeys(commands)),
        "facts": {**old["facts"], **new["facts"], "skipped": {**skipped, **new["facts"].get("skipped", {})}},
        "results": [*(result for result in old["results"] if result["name"] not in names), *new["results"]],
        "tables": {**old["tables"], **new["tables"]},
    }


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def print_record(record: Mapping[str, Any]) -> None:
    """The record as plain text."""
    print(f"\n{record['benchmark']}: {record['machine']}")
    print(", ".join(f"{name} {number}" for name, number in record["versions"].items()))
    for name, fact in record["facts"].items():
        print(f"{name}: {fact}")
    for result in record["results"]:
        peers = ", ".join(f"{name} {value:g}" for name, value in result["peers"].items())
        ratio = "" if result["ratio"] is None else f" | {result['ratio']:.3g} times the best peer"
        goal = {None: "", True: " | goal met", False: f" | GOAL MISSED: {result['goal']}"}[result["met"]]
        print(f"{result['name']} ({result['unit']}): {result['ours']:g}{' | ' + peers if peers else ''}{ratio}{goal}")
    for name, table in record["tables"].items():
        print(f"\n{name}")
        for row in [table["header"], *table["rows"]]:
            print("  " + " | ".join(f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row))
