"""What a training loop waits for: the demo's share of time spent waiting for data, and threads against processes."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.corpus import MeasuredCorpus
from benchmarks.engine import objective_of, open_rows
from benchmarks.machine import WORK, interleaved, medians
from benchmarks.record import Goal, Result
from pipeline.objectives.objective import Objective

_STEPS: Final = 60
_PYTHON_SECONDS: Final = 0.005


def measure_wait_share(repetitions: int, cores: set[int]) -> list[Result]:
    """The demo's training in one process: the share of time spent waiting for batches.

    Once with the core that this process is pinned to, which loader and model then share, and once with all cores.
    """
    corpus, run = WORK / "demo", WORK / "demo-run"
    _build_demo(corpus)
    own = os.sched_getaffinity(0)

    def share(allowed: set[int]) -> float:
        shutil.rmtree(run, ignore_errors=True)
        os.sched_setaffinity(0, allowed)
        try:
            _pretrain(
                *("train", "configs/demo.yaml", "--data.corpus", str(corpus), "--run_directory", str(run)),
                *("--train.steps", str(_STEPS), "--schedule.warmup_steps", "10", "--train.strategy", "single"),
                *("--monitor.log_every_steps", "10", "--evaluation.every_steps", "0"),
                *("--checkpoint.every_steps", str(_STEPS)),
            )
        finally:
            os.sched_setaffinity(0, own)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        waits = [entry["data_wait_fraction"] for entry in map(json.loads, lines) if "data_wait_fraction" in entry]
        return 100 * statistics.median(waits[1:])

    contenders = {
        "data_wait_share, demo, one core for loader and model": lambda: share(own),
        f"data_wait_share, demo, {len(cores)} cores": lambda: share(cores),
    }
    found = medians(interleaved(contenders, repetitions, "%"))
    return [Result(name, "% of time", "lower", share, goal=Goal(ours=0.5)) for name, share in found.items()]


def _build_demo(corpus: Path) -> None:
    """The demo's corpus in the present format; a finished one is kept."""
    from pipeline.base.errors import UserError
    from pipeline.shards.files import LocalFiles
    from pipeline.shards.manifest import read_manifest

    try:
        read_manifest(LocalFiles(corpus))
    except UserError:
        shutil.rmtree(corpus, ignore_errors=True)
        _pretrain("corpus", "build", "configs/corpus/demo.yaml", "--output", str(corpus))


def _pretrain(*arguments: str) -> None:
    """Run the command line, in this environment."""
    program = "import sys; from pipeline.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"WANDB_MODE": "disabled"},
    )
    if done.returncode:
        raise RuntimeError(f"pretrain {' '.join(arguments)} failed:\n{done.stdout[-800:]}\n{done.stderr[-800:]}")


@dataclass(frozen=True)
class _Prepare:
    """Rows of some steps to their batches; worker processes get it."""

    objective: Objective
    digests: bool

    def __call__(self, rows: Any, steps: Any) -> Any:
        return self.objective.prepare_steps(rows, 1, steps, steps if self.digests else ())


def measure_workers(corpus: MeasuredCorpus, repetitions: int, steps: int, cores: set[int]) -> list[Result]:
    """The thread against 1 and 2 worker processes, on all cores of the machine.

    Three loads: masked batches asked for as fast as they come; the same with every row digested, which is slow to
    prepare; and a consumer that keeps the interpreter busy for 5 ms a step, as a loop that starts many kernels does.
    """
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        return [
            _compare_workers(corpus, "loader, masked batches", False, lambda: None, repetitions, steps),
            _compare_workers(corpus, "loader, digested batches", True, lambda: None, repetitions, steps // 4),
            _compare_workers(corpus, "loader, busy interpreter (5 ms a step)", False, _busy, repetitions, steps // 2),
        ]
    finally:
        os.sched_setaffinity(0, own)


def _busy() -> None:
    end = time.perf_counter() + _PYTHON_SECONDS
    while time.perf_counter() < end:
        pass


def _compare_workers(
    corpus: MeasuredCorpus, name: str, digests: bool, consume: Callable[[], None], repetitions: int, steps: int
) -> Result:
    from pipeline.data.loader import make_loader

    def milliseconds_a_step(workers: int) -> float:
        stream = open_rows(corpus.directory)
        prepare = _Prepare(objective_of(stream), digests)
        loader = make_loader(
            stream,
            prepare,
            first_step=0,
            last_step=steps + 8,
            rank=0,
            world_size=1,
            workers=workers,
            prefetch_steps=16,
        )
        batches = iter(loader)
        for _ in range(8):
            next(batches)
        before = time.perf_counter()
        for _ in batches:
            consume()
        return (time.perf_counter() - before) / steps * 1e3

    contenders: dict[str, Callable[[], float]] = {
        "thread": lambda: milliseconds_a_step(0),
        "1 worker process": lambda: milliseconds_a_step(1),
        "2 worker processes": lambda: milliseconds_a_step(2),
    }
    found = medians(interleaved(contenders, repetitions, name))
    return Result(name, "ms a step of 64 rows", "lower", found.pop("thread"), found)
