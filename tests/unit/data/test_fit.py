"""Best fit by runs against the textbook algorithm, item by item."""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.keyed import key, sorted_by_group
from pipeline.data.fit import (
    Runs,
    best_fit_decreasing,
    count_rows,
    deal_small_items,
    in_keyed_order,
    pack,
    place_items,
)


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


def sizes_in(runs: Runs, histogram: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes of the items, row after row, and items of every row."""
    sizes = np.repeat(np.arange(len(histogram)), histogram)
    item, counts = place_items(runs, np.arange(len(sizes), dtype=np.uint32), np.cumsum(histogram))
    return sizes[item], counts


def content(runs: Runs, histogram: NDArray[np.int64]) -> Counter:
    sizes, counts = sizes_in(runs, histogram)
    ends = np.cumsum(counts)
    rows = zip(ends.tolist(), counts.tolist(), strict=True)
    return Counter(tuple(sizes[end - count : end].tolist()) for end, count in rows)


def random_histogram(generator: np.random.Generator, num_slots: int) -> NDArray[np.int64]:
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
    return np.bincount(np.maximum(1, sizes).astype(int), minlength=num_slots + 1)


@pytest.mark.parametrize("bounded", [False, True])
def test_runs_equal_the_textbook_rows(bounded: bool) -> None:
    generator = np.random.default_rng(int(bounded))
    for _ in range(300):
        num_slots = int(generator.integers(8, 129))
        histogram = random_histogram(generator, num_slots)
        bound = max(1, num_slots // 8) if bounded else num_slots
        runs = best_fit_decreasing(histogram, num_slots, bound)
        expected = Counter(tuple(row) for row in textbook(histogram.tolist(), num_slots, bound))
        assert content(runs, histogram) == expected


@pytest.mark.parametrize("packer", [pack, deal_small_items])
def test_every_item_is_placed_once_within_slots_and_bound(packer) -> None:
    generator = np.random.default_rng(7)
    for _ in range(300):
        num_slots = int(generator.integers(8, 129))
        histogram = random_histogram(generator, num_slots)
        bound = max(1, num_slots // 8)
        runs = packer(histogram, num_slots, bound)
        sizes, counts = sizes_in(runs, histogram)
        assert np.bincount(sizes, minlength=num_slots + 1).tolist() == histogram.tolist()
        assert len(counts) == count_rows(runs)
        assert counts.min() >= 1
        assert counts.max() <= bound
        assert np.add.reduceat(sizes.astype(np.int64), np.cumsum(counts) - counts).max() <= num_slots


def test_dealing_saves_rows_where_tiny_items_would_fill_rows_up() -> None:
    # 60 items of 60 slots leave 8 slots a row of 128; 900 of 3 then meet the bound of 16 a row.
    histogram = np.zeros(129, np.int64)
    histogram[60], histogram[3], histogram[10] = 60, 900, 300
    bounded = best_fit_decreasing(histogram, 128, 16)
    packed = pack(histogram, 128, 16)
    assert count_rows(packed) < count_rows(bounded)
    assert count_rows(packed) >= -(-sum(size * count for size, count in enumerate(histogram)) // 128)


def test_the_bound_changes_nothing_where_it_is_not_met() -> None:
    generator = np.random.default_rng(3)
    histogram = np.bincount(generator.integers(30, 129, 500), minlength=129)
    bounded, unbounded = pack(histogram, 128, 16), best_fit_decreasing(histogram, 128, 128)
    assert content(bounded, histogram) == content(unbounded, histogram)


def test_nothing_to_pack() -> None:
    nothing = np.zeros(129, np.int64)
    assert count_rows(pack(nothing, 128, 16)) == 0
    assert [len(part) for part in sizes_in(pack(nothing, 128, 16), nothing)] == [0, 0]


@pytest.mark.parametrize("num_items", [0, 1, 7, 5000])
def test_items_of_a_size_stand_in_the_keyed_order(num_items: int) -> None:
    slots = np.random.default_rng(num_items).integers(1, 40, num_items)
    order, ends = in_keyed_order(slots, np.bincount(slots, minlength=65), np.uint64(key(num_items)))
    np.testing.assert_array_equal(order, sorted_by_group(key(num_items), slots))
    np.testing.assert_array_equal(ends, np.cumsum(np.bincount(slots, minlength=65)))
