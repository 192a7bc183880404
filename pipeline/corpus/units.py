"""The input, cut into units of work: from the config and the files alone, never from the number of workers.

A unit is a file, a range of whole lines of a large JSON-lines file, or a range of rows of a table. A task is a run of
consecutive units, so input order is task order, and joining the results of all tasks gives the input's order again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.base.files import write_bytes_atomically

_SMALLEST_TASK_BYTES = 4 << 20
_LARGEST_TASK_BYTES = 256 << 20
_AIMED_TASKS = 1024
_EXPANSION = {".gz": 4, ".zst": 4, ".parquet": 3}


@dataclass(frozen=True)
class InputFile:
    """A file of a source, as found."""

    source: int
    """Index of the source in the config."""

    kind: str
    """How it is read: ``text``, ``jsonl``, ``parquet``, ``arrow``, ``fasta`` or ``integers``."""

    path: str
    """What to open."""

    name: str
    """Part of the document ids: the path below the source's folder."""

    place: str
    """How messages call it: the path as the config gives it."""

    bytes: int
    """Size on disk."""

    modified: float
    """Time of the last change, to notice one between two attempts of a build."""

    first_row: int = 0
    """arrow: rows of the data set in the files before this one."""

    @property
    def weight(self) -> int:
        """About how many bytes of text it holds."""
        return self.bytes * next((factor for ending, factor in _EXPANSION.items() if self.path.endswith(ending)), 1)


@dataclass(frozen=True)
class Unit:
    """What one reader call reads."""

    file: InputFile
    """The file."""

    begin: int = 0
    """First byte (jsonl) or row (tables)."""

    end: int = -1
    """Behind the last byte or row; -1: the whole file."""

    first: int = 0
    """Lines or rows of the data set before ``begin``."""

    weight: int = 0
    """Its share of the work, in bytes."""


def task_bytes(total_weight: int, num_tasks: int) -> int:
    """Aimed size of a task: the config's, else about 1,024 tasks of 4 to 256 MiB."""
    if num_tasks:
        return max(1, -(-total_weight // num_tasks))
    return min(max(total_weight // _AIMED_TASKS, _SMALLEST_TASK_BYTES), _LARGEST_TASK_BYTES)


def group_units(units: Sequence[Unit], num_tasks: int) -> list[list[Unit]]:
    """Deal consecutive units to at most ``num_tasks`` (0: as :func:`task_bytes` says) tasks of about equal weight."""
    total = sum(unit.weight for unit in units)
    num_groups = num_tasks or max(1, -(-total // task_bytes(total, 0)))
    groups: dict[int, list[Unit]] = {}
    before = 0
    for unit in units:
        groups.setdefault(min(num_groups - 1, before * num_groups // max(1, total)), []).append(unit)
        before += unit.weight
    return [groups[number] for number in sorted(groups)]


def write_tasks(directory: Path, tasks: Sequence[Sequence[Unit]]) -> None:
    """One JSON file a task, so that a worker loads its own units and no others."""
    for number, units in enumerate(tasks):
        write_bytes_atomically(_task_path(directory, number), json.dumps([asdict(unit) for unit in units]).encode())


def read_task(directory: Path, number: int) -> list[Unit]:
    """The units of a task."""
    values: list[dict[str, Any]] = json.loads(_task_path(directory, number).read_bytes())
    return [Unit(**{**value, "file": InputFile(**value["file"])}) for value in values]


def _task_path(directory: Path, number: int) -> Path:
    return directory / f"{number:05d}.json"
