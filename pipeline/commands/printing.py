"""Facts on standard output, as text or JSON; progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """One fact a line, or all as JSON."""
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        text = "; ".join(map(str, text)) if isinstance(text, list) else text
        print(f"{name.replace('_', ' '):<{width}}  {text}")


def print_lines(lines: Sequence[str], facts: dict[str, Any], as_json: bool) -> None:
    """The lines that a command has made of its facts, or the facts as JSON."""
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def progress_line(what: str) -> Callable[[int, int], None]:
    """A line that counts: call it with what is done and the total."""

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
