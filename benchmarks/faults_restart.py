"""How long a restart takes: from `kill -9` of a rank to the end of the next step, and where that time goes.

Real processes: torchrun notices the death and starts both ranks again (`--max-restarts 1`). The run itself writes down
the phases of a start (event `training`); what comes after is in the metrics of its first step.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.faults_trial import metrics_of, started, write_config
from pipeline.monitor.events import read_events
from pipeline.monitor.json_lines import moment
from pipeline.monitor.progress import read_progress

SPLIT: Final = ("launcher", "import", "rendezvous", "model", "load", "data", "first step (compile)")
"""Parts of a restart, which add up to it. launcher: until the new process of rank 0 is there."""

_PHASES: Final = {
    "import": ("import",),
    "rendezvous": ("rendezvous",),
    "model": ("model", "strategy", "monitor"),
    "load": ("lock", "load"),
    "data": ("data",),
}
_KILL_AFTER_STEP: Final = 45
"""By then the first checkpoint is whole, which is written beside the steps."""


def settings_of_restarts(directory: Path) -> dict[str, list[str]]:
    """Name -> overrides of the runs to restart. Compiled kernels are on disk when the run is started again."""
    compiled = ["--train.compile", "true", "--train.compile_cache", str(directory / "compiled")]
    return {
        "ddp": ["--train.strategy", "ddp"],
        "zero1": ["--train.strategy", "zero1"],
        "ddp, compiled": ["--train.strategy", "ddp", *compiled],
    }


def measure_restart(overrides: list[str], directory: Path, corpus: Path, limit_seconds: float) -> dict[str, float]:
    """Seconds of a restart: ``total`` and the parts of :data:`SPLIT`.

    Raises:
        RuntimeError: the run does not come to its end.
    """
    config = write_config(directory, "restart", corpus)
    run = config.with_suffix("")
    shutil.rmtree(run, ignore_errors=True)
    with started(config, [*overrides, "--max-restarts", "1"], 2 * limit_seconds) as starter:
        starter.start()
        while not ((progress := read_progress(run)) and progress.step >= _KILL_AFTER_STEP):
            if starter.ended():
                raise RuntimeError(f"the run ended too early:\n{starter.log.read_text()[-3000:]}")
            time.sleep(0.001)
        rank = starter.process_of("rank 1")
        assert rank is not None, "the run ended before it was killed"
        killed = time.time()
        os.kill(rank, signal.SIGKILL)
        if starter.wait() != 0:
            raise RuntimeError(f"the run was not started again:\n{starter.log.read_text()[-3000:]}")
    return split_of(read_events(run), metrics_of(run), killed)


def split_of(events: list[dict[str, Any]], metrics: list[dict[str, Any]], killed: float) -> dict[str, float]:
    """The parts, from what the run has written.

    Args:
        killed: when, in seconds since 1970.
    """
    began = next(event for event in reversed(events) if event["event"] == "resumed")
    ready = next(event for event in reversed(events) if event["event"] == "training")
    first = next(line for line in metrics if line["step"] == began["step"] + 1)
    phases = ready["start_up_seconds"]
    parts = {part: sum(phases.get(phase, 0.0) for phase in names) for part, names in _PHASES.items()}
    parts["launcher"] = _moment(began["began"]) - killed
    parts["data"] += first["time_data_wait"]
    total = _moment(first["time"]) - killed
    return {"total": total, **parts, "first step (compile)": total - sum(parts.values())}


def _moment(written: Any) -> float:
    when = moment(written)
    assert when is not None, written
    return when
