"""Where metrics go. All sinks have the same four calls and live on rank 0 only.

A metric line is a flat dict with ``step`` (completed optimizer steps) and whatever was measured: ``loss``, ``lr``,
``grad_norm``, ``tokens``, ``tokens_per_second``, ``mfu``, ``data_wait_fraction``, ``batch_digest``, ``memory_gb``,
``validation_loss``, ``validation_accuracy_mlm``, ... Units are in ``docs/monitor.md``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pipeline.base.files import write_bytes_atomically
from pipeline.base.logs import get_logger
from pipeline.config.run import MonitorConfig
from pipeline.monitor.json_lines import (
    Record,
    decode_line,
    encode_line,
    encode_plain_line,
    number,
    plain_value,
    read_records,
    utc_now,
)

METRICS_NAME = "metrics.jsonl"
SUPERSEDED_NAME = "metrics.superseded.jsonl"


class Sink(Protocol):
    """A place for metrics."""

    def start(self, run_facts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Before the first step.

        Args:
            run_facts: ``first_step`` (steps done before this start, 0 for a new run), ``total_steps``, and free facts.
            config: the resolved config as nested dicts.
        """

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics; ``metrics["step"]`` never decreases. The same step again adds keys to its line."""

    def event(self, name: str, **facts: Any) -> None:
        """Something worth a line of its own (``checkpoint``, ``resumed``, ``stopped``, ...); ``step`` if it has one."""

    def close(self) -> None:
        """Flush and release; may be called twice."""


def read_metrics(run_directory: Path) -> list[Record]:
    """The metric lines of a run, as written (NaN is the string ``"nan"``); a torn last line is passed over."""
    return read_records(run_directory / METRICS_NAME)


def terms_of(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """What a loss is made of: the terms of an objective, the objectives of a mixture.

    Args:
        record: a metric line.
        prefix: ``loss_`` or ``validation_loss_``, which the names are given without.
    """
    found = {
        name.removeprefix(prefix): number(value)
        for name, value in record.items()
        if name.startswith(prefix) and name != "loss_scale"  # which fp16 logs
    }
    return {name: value for name, value in found.items() if value is not None}


class JsonlSink:
    """``metrics.jsonl``: one object a step, in order, written through at every call.

    A kill loses at most the line being written. On resume at step ``k`` the lines of later steps (the run died after
    it logged them, and computes them again) and a torn last line move to ``metrics.superseded.jsonl``; nothing is
    deleted, and no step is in ``metrics.jsonl`` twice.
    """

    def __init__(self, run_directory: Path) -> None:
        self.path = run_directory / METRICS_NAME
        self.superseded_path = run_directory / SUPERSEDED_NAME
        self._file: BinaryIO | None = None
        self._last: Record = {}
        self._last_offset = 0

    def start(self, run_facts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = self._supersede_after(int(run_facts.get("first_step", 0)))
        self._last = records[-1] if records else {}
        self.path.touch()
        self._file = open(self.path, "r+b")  # noqa: SIM115 (open as long as the run, closed by close)
        self._last_offset = self._file.seek(0, os.SEEK_END) - (len(encode_line(self._last)) if records else 0)

    def _supersede_after(self, step: int) -> list[Record]:
        """Rewrite the file with the lines up to ``step``; returns them. A clean file stays untouched."""
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        kept: list[Record] = []
        moved: list[Record] = []
        for line in filter(bytes.strip, lines):
            record = decode_line(line)
            if record is None:
                moved.append({"torn_line": line.decode(errors="replace")})
            elif int(record.get("step", 0)) > step:
                moved.append(record)
            else:
                kept.append(record)
        content = b"".join(map(encode_line, kept))
        if moved:
            # The copy is durable before the original goes: a crash in between leaves lines twice, never nowhere.
            with open(self.superseded_path, "ab") as file:
                file.write(b"".join(map(encode_line, moved)))
                file.flush()
                os.fsync(file.fileno())
            get_logger("monitor").info(
                "%d lines of metrics after step %d moved to %s", len(moved), step, self.superseded_path.name
            )
        if content != b"\n".join(lines):
            write_bytes_atomically(self.path, content)
        return kept

    def log(self, metrics: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("JsonlSink.log before start, or after close")
        step, last_step = int(metrics["step"]), int(self._last.get("step", -1))
        if step < last_step:
            raise ValueError(f"metrics of step {step} after those of step {last_step}: steps must not decrease")
        record: Record = plain_value({**metrics, "step": step})
        repeated = step == last_step
        if repeated:
            # More of the same step (validation after training): its line is overwritten by the fuller one.
            record = {**self._last, **record}
            self._file.seek(self._last_offset)
        else:
            self._last_offset = self._file.tell()  # always at the end
        record.setdefault("time", utc_now())
        self._file.write(encode_plain_line(record))
        if repeated:
            self._file.truncate()
        self._file.flush()
        self._last = record

    def event(self, name: str, **facts: Any) -> None:
        """Events have a file of their own (:mod:`pipeline.monitor.events`)."""

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def make_sinks(run_directory: Path, config: MonitorConfig, run_name: str | None = None) -> list[Sink]:
    """The sinks of a run: file, console, and wandb unless it is off. Call on rank 0; ``start`` each of them."""
    from pipeline.monitor.console import ConsoleSink
    from pipeline.monitor.wandb_sink import WandbSink

    sinks: list[Sink] = [JsonlSink(run_directory), ConsoleSink()]
    if config.wandb != "off":
        sinks.append(WandbSink(run_directory, mode=config.wandb, project=config.wandb_project, run_name=run_name))
    return sinks
