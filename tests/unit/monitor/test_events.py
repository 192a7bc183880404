"""The page names every event of a run, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PLACE_OF_NAME = {"append_event": 1, "_tell": 0, "Trouble": 0}
"""Functions that write an event, and where its name stands among their arguments."""


def written_events() -> Iterator[str]:
    """Names of events in the code."""
    for path in ROOT.glob("pipeline/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if function in PLACE_OF_NAME:
                    name = node.args[PLACE_OF_NAME[function]]
                    choices = (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,)
                    yield from (choice.value for choice in choices if isinstance(choice, ast.Constant))


def test_the_page_names_all_events() -> None:
    page = (ROOT / "docs/monitor.md").read_text()
    table = page.split("## events.jsonl")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert sorted(named) == sorted(set(written_events()))
    assert "budget_spent" in named
