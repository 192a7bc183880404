"""Units of work come from the input alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.units import InputFile, Unit, group_units, read_task, task_bytes, write_tasks


def units(weights: list[int]) -> list[Unit]:
    file = InputFile(0, "text", "/a", "a", "a", 1, 0.0)
    return [Unit(file, first=number, weight=weight) for number, weight in enumerate(weights)]


@pytest.mark.parametrize("num_tasks", [1, 2, 7, 100])
def test_every_unit_is_in_one_task_in_input_order(num_tasks: int) -> None:
    generator = np.random.default_rng(num_tasks)
    for _ in range(50):
        given = units(generator.integers(0, 1000, int(generator.integers(1, 60))).tolist())
        groups = group_units(given, num_tasks)
        assert [unit for group in groups for unit in group] == given
        assert 1 <= len(groups) <= num_tasks
        assert all(groups)


def test_tasks_are_about_equal() -> None:
    groups = group_units(units([10] * 1000), 8)
    assert [len(group) for group in groups] == [125] * 8


def test_small_files_share_a_task_and_empty_ones_do_not_divide_by_zero() -> None:
    assert len(group_units(units([100] * 1000), 0)) == 1
    assert len(group_units(units([0, 0, 0]), 0)) == 1
    assert len(group_units(units([5 << 20] * 4), 0)) > 1


def test_size_of_a_task() -> None:
    assert task_bytes(0, 0) == 4 << 20
    assert task_bytes(1 << 40, 0) == 256 << 20
    assert task_bytes(1000, 3) == 334


def test_compressed_files_weigh_more() -> None:
    assert InputFile(0, "jsonl", "/a.jsonl.zst", "a", "a", 100, 0.0).weight == 400
    assert InputFile(0, "jsonl", "/a.jsonl", "a", "a", 100, 0.0).weight == 100


def test_tasks_survive_the_disk(tmp_path: Path) -> None:
    groups = group_units(units([3, 4, 5]), 2)
    write_tasks(tmp_path, groups)
    assert [read_task(tmp_path, number) for number in range(len(groups))] == groups
