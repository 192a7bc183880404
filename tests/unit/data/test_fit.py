"""Best fit by runs against the textbook algorithm, item by item."""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np
import pytest

from pipeline.data.fit import best_fit_decreasing, count_rows, deal_small_items, expand, pack


def textbook(num_items: list[int], num_slots: int, max_segments: int) -> list[list[int]]:
    """Best-fit decreasing with `bisect`: tightest row, among equals the one changed last; full rows are closed."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int, int]] = []  # (room, minus time of the last change, row), sorted
    time = 0
    for size in range(len(num_items) - 1, 0, -1):
        for _ in range(num_items[size]):
            time += 1
            place = bisect.bisect_left(open_rows, (size, -time, 0))
            if place < len(open_rows):
                room, _, row = open_rows.pop(place)
            else:
                room, row = num_slots, len(rows)
                rows.append([])
            rows[row].append(size)
            if room > size and len(rows[row]) < max_segments:
                bisect.insort(open_rows, (room - size, -time, row))
    return rows


def content(runs: list) -> Counter:
    sizes, counts = expand(runs)
    ends = np.cumsum(counts)
    rows = zip(ends.tolist(), counts.tolist(), strict=True)
    return Counter(tuple(sizes[end - count : end].tolist()) for end, count in rows)


def random_histogram(generator: np.random.Generator, num_slots: int) -> list[int]:
    kind = generator.integers(0, 4)
    num_items = int(generator.integers(1, 400))
    if kind == 0:
        sizes = generator.integers(1, num_slots + 1, num_items)
    elif kind == 1:
        sizes = np.clip(generator.lognormal(np.log(num_slots / 6), 1.0, num_items), 1, num_slots)
    elif kind == 2:
        sizes = generator.integers(1, max(2, num_slots // 8), num_items)
    else:
        sizes = generator.choice([num_slots // 2, num_slots // 2 + 1, num_slots // 3, 3, 1], num_items)
    return np.bincount(np.maximum(1, sizes).astype(int), minlength=num_slots + 1).tolist()


@pytest.mark.parametrize("bounded", [False, True])
def test_runs_equal_the_textbook_rows(bounded: bool) -> None:
    generator = np.random.default_rng(int(bounded))
    for _ in range(300):
        num_slots = int(generator.integers(8, 129))
        histogram = random_histogram(generator, num_slots)
        bound = max(1, num_slots // 8) if bounded else num_slots
        runs, _ = best_fit_decreasing(histogram, num_slots, bound)
        assert content(runs) == Counter(tuple(row) for row in textbook(histogram, num_slots, bound))


@pytest.mark.parametrize("packer", [pack, deal_small_items])
def test_every_item_is_placed_once_within_slots_and_bound(packer) -> None:
    generator = np.random.default_rng(7)
    for _ in range(300):
        num_slots = int(generator.integers(8, 129))
        histogram = random_histogram(generator, num_slots)
        bound = max(1, num_slots // 8)
        runs = packer(histogram, num_slots, bound)
        sizes, counts = expand(runs)
        assert np.bincount(sizes, minlength=num_slots + 1).tolist() == histogram
        assert len(counts) == count_rows(runs)
        assert counts.min() >= 1
        assert counts.max() <= bound
        assert np.add.reduceat(sizes.astype(np.int64), np.cumsum(counts) - counts).max() <= num_slots


def test_dealing_saves_rows_where_tiny_items_would_fill_rows_up() -> None:
    # 60 items of 60 slots leave 8 slots a row of 128; 900 of 3 then meet the bound of 16 a row.
    histogram = [0] * 129
    histogram[60], histogram[3], histogram[10] = 60, 900, 300
    bounded, bound_met = best_fit_decreasing(histogram, 128, 16)
    assert bound_met
    packed = pack(histogram, 128, 16)
    assert count_rows(packed) < count_rows(bounded)
    assert count_rows(packed) >= -(-sum(size * count for size, count in enumerate(histogram)) // 128)


def test_the_bound_changes_nothing_where_it_is_not_met() -> None:
    generator = np.random.default_rng(3)
    histogram = np.bincount(generator.integers(30, 129, 500), minlength=129).tolist()
    assert content(pack(histogram, 128, 16)) == content(best_fit_decreasing(histogram, 128, 128)[0])


def test_nothing_to_pack() -> None:
    assert pack([0] * 129, 128, 16) == []
    assert [len(part) for part in expand([])] == [0, 0]
