"""Shows a build: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.corpus.counters import total_of

_POLL_SECONDS = 0.2
_SECONDS_BETWEEN_LINES = 10.0


class BuildConsole:
    """Shows stages: a bar on a terminal, a line at the start, every ten seconds and at the end otherwise."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        # The file is fixed here: while a task runs in this process, `sys.stderr` is redirected to silence datatrove.
        self.console = Console(
            file=console.file,
            force_terminal=console.is_terminal,
            width=console.width if console.is_terminal else 200,
            highlight=False,
            soft_wrap=True,
        )

    def line(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, title: str, total: int, unit: str, counters: Path) -> Iterator[None]:
        """Show the sum of ``counters`` against ``total`` while the block runs."""
        started = time.monotonic()
        stop = threading.Event()
        show = self._bar if self.console.is_terminal else self._lines
        thread = threading.Thread(target=show, args=(title, total, unit, counters, stop), daemon=True)
        thread.start()
        finished = False
        try:
            yield
            finished = True
        finally:
            stop.set()
            thread.join()
        if finished:
            amount = f"{format_amount(total, unit)} in " if total else ""
            self.line(f"{title}: {amount}{time.monotonic() - started:.1f} s")

    def _bar(self, title: str, total: int, unit: str, counters: Path, stop: threading.Event) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns: tuple[Any, ...] = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self.console, transient=True, redirect_stderr=False, redirect_stdout=False
        ) as bar:
            task = bar.add_task(title, total=max(1, total), amount="")
            while not stop.wait(_POLL_SECONDS):
                done = min(total, total_of(counters))
                bar.update(task, completed=done, amount=format_amount(done, unit))

    def _lines(self, title: str, total: int, unit: str, counters: Path, stop: threading.Event) -> None:
        while not stop.wait(_SECONDS_BETWEEN_LINES):
            done = min(total, total_of(counters))
            if total:
                self.line(
                    f"{title}: {100 * done / total:.0f} % ({format_amount(done, unit)} of {format_amount(total, unit)})"
                )
            else:
                self.line(f"{title} ...")


def format_amount(amount: float, unit: str) -> str:
    """``5700000, "B"`` -> ``5.7 MB``; ``1324854, " tokens"`` -> ``1,324,854 tokens``."""
    if unit != "B":
        return f"{amount:,.0f}{unit}"
    for prefix in ("", "k", "M", "G"):
        if amount < 1000:
            return f"{amount:.0f} B" if not prefix else f"{amount:.1f} {prefix}B"
        amount /= 1000
    return f"{amount:.1f} TB"
