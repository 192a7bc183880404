"""Planning a corpus of up to 10^12 tokens, each measurement in a process of its own.

    python -m benchmarks.planning DIRECTORY FIRST_STEP NUM_STEPS RANK WORLD_SIZE

opens the stream, plans the first step, then ``NUM_STEPS`` more, and prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.machine import CoreShare, drop_free_memory, own_megabytes, resident_megabytes, use_one_core

SEQUENCE_LENGTH: Final = 512
BATCH_ROWS: Final = 256


@dataclass(frozen=True)
class Measured:
    """One process's findings."""

    open_seconds: float
    """Manifest and row table: ready to plan."""

    first_step_seconds: float
    """That, and the plan of the first step."""

    first_step_processor_seconds: float
    """The same as the processor counts it: less than that on a busy machine."""

    open_indexes: int
    """Index files read until then."""

    making_seconds: float
    """Of that time, what went into making those indexes."""

    step_milliseconds: dict[str, float]
    """median, mean, worst."""

    resident_megabytes: float
    own_megabytes: float
    """Without mapped files."""

    epoch_edge: bool
    """Whether an epoch ended among the steps."""

    core_share: float


def in_new_process(
    directory: Path, first_step: int, num_steps: int, rank: int = 0, world_size: int = 1, untimed_steps: int = 0
) -> Measured:
    """Measure in a fresh process.

    Args:
        untimed_steps: planned before the timed ones, so that looking ahead has its full distance.
    """
    arguments = [str(directory), *map(str, (first_step, num_steps, rank, world_size, untimed_steps))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.planning", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"planning failed: {done.stderr[-1500:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def last_step_of_epoch(directory: Path) -> int:
    """The step in which epoch 0 ends."""
    return int(np.load(directory / "rows.npy").sum()) // BATCH_ROWS


def measure(
    directory: Path, first_step: int, num_steps: int, rank: int, world_size: int, untimed_steps: int
) -> dict[str, Any]:
    """Open, then plan step after step."""
    from benchmarks.synthetic import SyntheticFiles
    from pipeline.data.stream import open_stream

    files = SyntheticFiles(directory)
    share = CoreShare()
    before, processor_before = time.perf_counter(), time.process_time()
    stream = open_stream(
        files, kind="bert", sequence_length=SEQUENCE_LENGTH, global_batch_size=BATCH_ROWS, open_shards=256
    )
    opened = time.perf_counter() - before
    stream.plan([first_step], rank, world_size)
    planned, processor = time.perf_counter() - before, time.process_time() - processor_before
    making, indexes = files.making_seconds, files.num_indexes
    times = []
    edge = last_step_of_epoch(directory)
    first_timed = first_step + 1 + untimed_steps
    for step in range(first_step + 1, first_timed):
        stream.plan([step], rank, world_size)
    for step in range(first_timed, first_timed + num_steps):
        before = time.perf_counter()
        stream.plan([step], rank, world_size)
        times.append(time.perf_counter() - before)
    drop_free_memory()
    milliseconds = np.array(times or [np.nan]) * 1e3
    return {
        "open_seconds": opened,
        "first_step_seconds": planned,
        "first_step_processor_seconds": processor,
        "open_indexes": indexes,
        "making_seconds": making,
        "step_milliseconds": {
            "median": float(np.median(milliseconds)),
            "mean": float(milliseconds.mean()),
            "worst": float(milliseconds.max()),
        },
        "resident_megabytes": resident_megabytes(),
        "own_megabytes": own_megabytes(),
        "epoch_edge": first_timed <= edge < first_timed + num_steps,
        "core_share": share(),
    }


def main() -> None:
    """Measure once and print the findings."""
    use_one_core()
    directory, *numbers = sys.argv[1:]
    print(json.dumps(measure(Path(directory), *map(int, numbers))))


if __name__ == "__main__":
    main()
