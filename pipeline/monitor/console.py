"""Metrics on the terminal: a progress bar where there is a person, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TextIO

from pipeline.base.logs import LOGGER_NAME
from pipeline.monitor.json_lines import number, plain_value
from pipeline.monitor.meters import EtaMeter, format_count, format_seconds

_ACCURACY: Final = "validation_accuracy_"


def format_line(metrics: Mapping[str, Any], total_steps: int, eta_seconds: float | None = None) -> str:
    """A line of metrics for a log.

    ``step 120/1000 loss 6.123 lr 1.0e-3 grad 0.85 12.3k tok/s mfu 41.2 % wait 0.1 % mem 3.2 GB eta 3:20``; what was
    not measured is left out, and a validation appends ``validation loss 5.912 perplexity 369.4 mlm 12.3 % right``. A
    loss of several terms is followed by them: ``loss 6.816 (mlm 6.123 nsp 0.693)``.
    """
    value = {name: number(item) for name, item in plain_value(metrics).items()}
    parts = [f"step {int(metrics['step'])}/{total_steps}"]
    forms: list[tuple[str, Callable[[float], str]]] = [
        ("loss", lambda x: f"loss {x:.3f}{_terms(value, 'loss')}"),
        ("lr", lambda x: f"lr {x:.1e}".replace("e-0", "e-") if x else "lr 0"),
        ("grad_norm", lambda x: f"grad {x:.2f}"),
        ("tokens_per_second", lambda x: f"{format_count(x)} tok/s"),
        ("mfu", lambda x: f"mfu {x * 100:.1f} %"),
        ("data_wait_fraction", lambda x: f"wait {x * 100:.1f} %"),
        ("memory_gb", lambda x: f"mem {x:.1f} GB"),
        ("budget_share", lambda x: f"budget {x * 100:.1f} %"),
        ("validation_loss", lambda x: f"validation loss {x:.3f}{_terms(value, 'validation_loss')}"),
        ("validation_perplexity", lambda x: f"perplexity {x:.1f}"),
    ]
    for name in value:
        if name.startswith(_ACCURACY):
            forms.append((name, partial(_accuracy, name.removeprefix(_ACCURACY))))
    for name, form in forms:
        found = value.get(name)
        if found is not None:
            parts.append(form(found))
    if eta_seconds is not None:
        parts.append(f"eta {format_seconds(eta_seconds)}")
    return " ".join(parts)


def _terms(value: Mapping[str, float | None], loss: str) -> str:
    """`` (mlm 6.123 nsp 0.693)``, or nothing where the loss has one term."""
    names = [name for name in value if name.startswith(f"{loss}_") and name != "loss_scale"]  # which fp16 logs
    parts = [f"{name.removeprefix(loss)[1:]} {found:.3f}" for name in names if (found := value[name]) is not None]
    return f" ({' '.join(parts)})" if parts else ""


def _accuracy(of: str, share: float) -> str:
    return f"{of} {share * 100:.1f} % right"


def format_event(name: str, facts: Mapping[str, Any]) -> str:
    """``checkpoint at step 200: path=..., seconds=1.2``."""
    place = f" at step {facts['step']}" if facts.get("step") is not None else ""
    rest = ", ".join(f"{key}={value}" for key, value in facts.items() if key != "step")
    return f"{name.replace('_', ' ')}{place}" + (f": {rest}" if rest else "")


class ConsoleSink:
    """A rich progress bar if ``stream`` (default: standard error) is a terminal, else one plain line a log call."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.clock = clock
        self.total_steps = 0
        self._eta: EtaMeter | None = None
        self._progress: Any = None
        self._task: Any = None
        self._validation_loss: float | None = None
        self._redirected: list[tuple[logging.StreamHandler[Any], TextIO]] = []

    def start(self, run_facts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        first_step = int(run_facts.get("first_step", 0))
        self.total_steps = int(run_facts.get("total_steps", 0))
        hours = config.get("schedule", {}).get("budget_hours")
        self._eta = EtaMeter(first_step, self.total_steps, self.clock(), None if hours is None else hours * 3600)
        if self.stream.isatty():
            self._start_bar(first_step)

    def _start_bar(self, first_step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("step {task.fields[step]}/{task.fields[total_steps]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
        )
        self._progress = Progress(*columns, console=Console(file=self.stream), expand=True, refresh_per_second=4)
        self._task = self._progress.add_task(
            "", total=1.0, completed=self._done(first_step), step=first_step, total_steps=self.total_steps,
            numbers="starting",
        )  # fmt: skip
        self._progress.start()
        # Log lines printed past the live display would tear it: send them through it while it is up.
        for handler in logging.getLogger(LOGGER_NAME).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is self.stream:
                self._redirected.append((handler, handler.stream))
                handler.setStream(sys.stderr)

    def log(self, metrics: Mapping[str, Any]) -> None:
        step = int(metrics["step"])
        value = {name: number(item) for name, item in plain_value(metrics).items()}
        budget_share = value.get("budget_share")
        eta_seconds = self._eta.add(step, self.clock(), budget_share) if self._eta else None
        if self._progress is None:
            self._print(format_line(metrics, self.total_steps, eta_seconds))
            return
        if value.get("validation_loss") is not None:
            self._validation_loss = value["validation_loss"]
            self._progress.console.print(format_line(metrics, self.total_steps), highlight=False, markup=False)
        parts = []
        if (loss := value.get("loss")) is not None:
            parts.append(f"loss {loss:.3f}")
        if self._validation_loss is not None:
            parts.append(f"validation {self._validation_loss:.3f}")
        if (rate := value.get("tokens_per_second")) is not None:
            parts.append(f"{format_count(rate)} tok/s")
        if eta_seconds is not None:
            parts.append(f"eta {format_seconds(eta_seconds)}")
        if "loss" in metrics:  # else more of the step that is shown
            done = self._done(step, budget_share or 0.0)
            self._progress.update(self._task, completed=done, step=step, numbers="  ".join(parts))

    def _done(self, step: int, budget_share: float = 0.0) -> float:
        """Share of the run: of its steps, or of its time budget, whichever ends it."""
        return min(max(step / max(self.total_steps, 1), budget_share), 1.0)

    def event(self, name: str, **facts: Any) -> None:
        self._print(format_event(name, plain_value(facts)))

    def _print(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self._progress is None:
            return
        self._progress.stop()
        self._progress = None
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected.clear()
