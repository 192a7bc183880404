"""Where a benchmark ran, and how it measures: one core, interleaved repetitions, medians."""

from __future__ import annotations

import ctypes
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

WORK: Final = Path("build/benchmarks")
"""Inputs made once and kept: tokenized text, peers' files. Ignored by git; may be deleted at any time."""


def use_one_core() -> int:
    """Pin this process to its last core and forbid thread pools; returns the core.

    The last one, because interrupts mostly go to the first.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def describe() -> str:
    """The machine in words: processor, cores, memory, vector instructions, operating system; no names, no paths."""
    facts = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines() if ":" in line
    )
    named = {name.strip(): value.strip() for name, value in facts.items()}
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = named.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "sse4_2") if name in flags), "none known")
    return (
        f"{named.get('model name', platform.machine())} (family {named.get('cpu family', '?')}, "
        f"model {named.get('model', '?')}), {os.cpu_count()} cores, {memory_gb:.0f} GB memory, "
        f"vector instructions {vectors}, {platform.system()}"
    )


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of these packages, where installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def interleaved(
    contenders: Mapping[str, Callable[[], float]], repetitions: int, announce: str | None = None
) -> dict[str, list[float]]:
    """Measure every contender ``repetitions`` times, in rounds, each round in another order.

    So what the machine does meanwhile meets all of them alike.

    Returns:
        what the contenders returned, round by round.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    names = list(contenders)
    for _ in range(repetitions):
        order.shuffle(names)
        for name in names:
            measured[name].append(contenders[name]())
    if announce:
        for name, values in measured.items():
            print(f"  {announce} {name}: {', '.join(f'{value:.4g}' for value in values)}", flush=True)
    return measured


def medians(measured: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of every contender."""
    return {name: statistics.median(values) for name, values in measured.items()}


class CoreShare:
    """How much of its core this process had since: below about 0.95, others used it too, and times are too long.

    Only for stretches in which this process alone computes.
    """

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def __call__(self) -> float:
        wall = time.perf_counter() - self.wall
        return min(1.0, (time.process_time() - self.processor) / wall) if wall else 1.0


def resident_megabytes() -> float:
    """Resident memory of this process now, in MB (mapped files that are in memory count)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def own_megabytes() -> float:
    """Resident memory that is this process's own: what is not a mapped file, in MB."""
    fields = [int(field) for field in Path("/proc/self/statm").read_text(encoding="ascii").split()]
    return (fields[1] - fields[2]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def drop_free_memory() -> None:
    """Give freed memory back to the system, so that resident memory is what is in use (glibc only)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
