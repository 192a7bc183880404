"""Best-fit decreasing over runs of equal rows: how many rows a histogram of sizes needs, and what stands in each.

The textbook algorithm (Johnson 1973) takes items by decreasing size and puts each into the row with the least room that
holds it. Items of a size are alike, and so are rows with the same content, so runs of them are moved at once; a bitmap
of the rooms that some row has left finds the tightest. Everything here is compiled and called by other kernels.

Letters: S sequence length (slots of a row), R rows, I items, N runs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import Whole, kernel
from pipeline.base.keyed_kernels import hash_u64


class Runs(NamedTuple):
    """Rows of equal content, run by run: the content of a run is that of the run it was made from, and some items of
    one size. It never changes, while the number of rows that have it and no more does."""

    table: NDArray[np.int32]
    """The runs, a column a fact: see below, (N, 6)."""

    top: NDArray[np.int32]
    """By room, the run put there last, or -1: rows that may take more; pile 0 has the closed ones, (S+1,)."""

    open_rooms: NDArray[np.uint64]
    """Bit ``r`` says that pile ``r > 0`` is not empty, (S // 64 + 1,)."""

    state: NDArray[np.int64]
    """Runs made so far; most items a row; whether a row was closed with room left because it had so many, (3,)."""


ROWS: Final = 0
"""Rows of the run."""

SEGMENTS: Final = 1
"""Items a row."""

MADE_FROM: Final = 2
"""The run whose content comes first, or -1."""

SIZE: Final = 3
"""Size of the items added to it."""

TIMES: Final = 4
"""How many of them a row."""

BELOW: Final = 5
"""The run put on the same pile before it, or -1."""

_ZERO: Final = np.int64(0)
_ONE: Final = np.int64(1)
"""Typed, since numba would compile a function anew for every literal that it is called with."""

_MADE: Final = 0
_MOST: Final = 1
_BOUND_MET: Final = 2

_ALL_BITS: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_DE_BRUIJN: Final = np.uint64(0x03F79D71B4CB0A89)
_BIT_OF: Final = np.zeros(64, np.int64)
for _bit in range(64):  # the top six bits of the product name the place of a single bit (Leiserson et al. 1998)
    _BIT_OF[(int(_DE_BRUIJN) << _bit & int(_ALL_BITS)) >> 58] = _bit


@kernel
def _no_rows(num_items: int, num_slots: int, max_segments: int) -> Runs:
    """No rows yet, and room for as many runs as ``num_items`` items can make."""
    table = np.empty((num_items + 1, 6), np.int32)
    state = np.array([0, max_segments, 0])
    return Runs(table, np.full(num_slots + 1, -1, np.int32), np.zeros(num_slots // 64 + 1, np.uint64), state)


@kernel
def _put(runs: Runs, room: Whole, num_rows: Whole, made_from: Whole, size: Whole, times: Whole) -> None:
    """A new run of rows that have ``room`` left: onto its pile, or closed."""
    segments = times + (runs.table[made_from, SEGMENTS] if made_from >= 0 else 0)
    pile: Whole = 0
    if room and segments < runs.state[_MOST]:
        runs.open_rooms[room >> 6] |= np.uint64(1) << np.uint64(room & 63)
        pile = room
    elif room:
        runs.state[_BOUND_MET] = 1
    run = runs.state[_MADE]
    runs.state[_MADE] += 1
    made = runs.table[run]
    made[ROWS], made[SEGMENTS], made[MADE_FROM] = num_rows, segments, made_from
    made[SIZE], made[TIMES], made[BELOW] = size, times, runs.top[pile]
    runs.top[pile] = run


@kernel
def _take(runs: Runs, room: Whole, num_rows: Whole) -> None:
    """Take rows from the run on top of a pile, which has as many or more."""
    run = runs.top[room]
    runs.table[run, ROWS] -= num_rows
    if not runs.table[run, ROWS]:
        runs.top[room] = runs.table[run, BELOW]
        if runs.top[room] < 0:
            runs.open_rooms[room >> 6] ^= np.uint64(1) << np.uint64(room & 63)


@kernel
def _tightest_room(open_rooms: NDArray[np.uint64], size: int) -> int:
    """The least room of at least ``size``; 0: none."""
    word = size >> 6
    bits = open_rooms[word] & (_ALL_BITS << np.uint64(size & 63))
    while not bits:
        word += 1
        if word == len(open_rooms):
            return 0
        bits = open_rooms[word]
    lowest = bits & (~bits + np.uint64(1))
    return (word << 6) + _BIT_OF[(lowest * _DE_BRUIJN) >> np.uint64(58)]


@kernel
def _add_best_fit(runs: Runs, size: int, num_items: Whole) -> None:
    """Place items of one size, each into the tightest row; among equals, the row changed last."""
    while num_items:
        room = _tightest_room(runs.open_rooms, size)
        if room:
            run = np.int64(runs.top[room])
            num_rows, num_segments = np.int64(runs.table[run, ROWS]), np.int64(runs.table[run, SEGMENTS])
        else:
            room, run, num_segments = len(runs.top) - 1, -_ONE, _ZERO
            fit = min(room // size, runs.state[_MOST])
            num_rows = (num_items + fit - 1) // fit
        # A row that took one item is now the tightest, so it takes the next ones too, until full.
        fit = min(room // size, runs.state[_MOST] - num_segments)
        filled = min(num_items // fit, num_rows)
        rest = num_items - filled * fit if filled < num_rows else 0  # fewer than `fit`: the run is long enough
        if run >= 0:
            _take(runs, room, filled + (rest > 0))
        if filled:
            _put(runs, room - fit * size, filled, run, size, fit)
        if rest:
            _put(runs, room - rest * size, _ONE, run, size, rest)
        num_items -= filled * fit + rest


@kernel
def best_fit_decreasing(num_items: NDArray[np.int64], num_slots: int, max_segments: int) -> Runs:
    """Pack ``num_items[size]`` items of every size, (S+1,), into rows of ``num_slots``."""
    runs = _no_rows(num_items.sum(), num_slots, max_segments)
    for size in range(num_slots, 0, -1):
        _add_best_fit(runs, size, num_items[size])
    return runs


@kernel
def deal_small_items(num_items: NDArray[np.int64], num_slots: int, max_segments: int) -> Runs:
    """Pack as :func:`best_fit_decreasing`, but spread items up to ``num_slots // 8`` evenly, so that no row fills up
    with tiny ones: three in four go to the roomiest row each, the fourth fills what is left, by best fit."""
    small = num_slots // 8
    runs = _no_rows(num_items.sum() + 1, num_slots, max_segments)
    num_slots_filled = 0
    for size in range(num_slots, 0, -1):
        num_slots_filled += size * num_items[size]
        if size > small:
            _add_best_fit(runs, size, num_items[size])
    needed = max(-(-num_slots_filled // num_slots), -(-num_items.sum() // max_segments))
    missing = needed - count_rows(runs)
    if missing > 0:
        _put(runs, num_slots, missing, -_ONE, _ZERO, _ZERO)
    kept_back = np.zeros(small + 1, np.int64)
    roomiest = num_slots
    for size in range(small, 0, -1):
        kept_back[size] = num_items[size] // 4
        to_deal = num_items[size] - kept_back[size]
        while to_deal:
            while roomiest and runs.top[roomiest] < 0:  # items only make rooms smaller
                roomiest -= 1
            if roomiest < size:
                break
            run = np.int64(runs.top[roomiest])
            dealt = min(np.int64(runs.table[run, ROWS]), to_deal)
            _take(runs, roomiest, dealt)
            _put(runs, roomiest - size, dealt, run, size, _ONE)
            to_deal -= dealt
        kept_back[size] += to_deal
    for size in range(small, 0, -1):
        _add_best_fit(runs, size, kept_back[size])
    return runs


@kernel
def count_rows(runs: Runs) -> int:
    """Rows that hold something."""
    num_rows = 0
    for room in range(len(runs.top)):
        run = runs.top[room]
        while run >= 0:
            if runs.table[run, SEGMENTS]:
                num_rows += runs.table[run, ROWS]
            run = runs.table[run, BELOW]
    return num_rows


@kernel
def pack(num_items: NDArray[np.int64], num_slots: int, max_segments: int) -> Runs:
    """Rows for a histogram: best-fit decreasing; if the bound on segments costs rows, the better of it and dealing.

    Args:
        num_items: items of every size, index 0 unused, (S+1,).
        num_slots: S.
        max_segments: most items a row.
    """
    runs = best_fit_decreasing(num_items, num_slots, max_segments)
    if not runs.state[_BOUND_MET]:
        return runs
    unbounded = best_fit_decreasing(num_items, num_slots, num_slots)
    if count_rows(runs) == count_rows(unbounded):
        return runs
    dealt = deal_small_items(num_items, num_slots, max_segments)
    return dealt if count_rows(dealt) < count_rows(runs) else runs


_DIGIT_BITS: Final = 12


@kernel
def in_keyed_order(
    slots: NDArray[np.int64], num_items: NDArray[np.int64], base_key: np.uint64
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Items by size, those of a size in a keyed order: as ``keyed.sorted_by_group``, by a radix sort.

    Args:
        slots: size of every item, (I,).
        num_items: items of every size, (S+1,).

    Returns:
        the items, (I,), and where the items of every size end among them, (S+1,).
    """
    digits = np.empty((2, len(slots)), np.uint32)
    places = np.zeros((2, (1 << _DIGIT_BITS) + 1), np.int64)
    mask = np.uint64((1 << _DIGIT_BITS) - 1)
    for item in range(len(slots)):
        hashed = hash_u64(base_key, np.uint64(item))
        digits[0, item] = hashed >> np.uint64(64 - 2 * _DIGIT_BITS) & mask
        digits[1, item] = hashed >> np.uint64(64 - _DIGIT_BITS)
        places[0, digits[0, item] + 1] += 1
        places[1, digits[1, item] + 1] += 1
    for digit in range(1 << _DIGIT_BITS):  # whole arrays at once would take numba seconds to compile
        places[0, digit + 1] += places[0, digit]
        places[1, digit + 1] += places[1, digit]
    order, moved = np.empty(len(slots), np.uint32), np.empty(len(slots), np.uint32)
    for item in range(len(slots)):
        place = digits[0, item]
        moved[places[0, place]] = item
        places[0, place] += 1
    for low in moved:
        place = digits[1, low]
        order[places[1, place]] = low
        places[1, place] += 1
    ends, place_of_size = np.empty_like(num_items), np.empty_like(num_items)
    end = np.int64(0)
    for size in range(len(num_items)):
        place_of_size[size] = end
        end += num_items[size]
        ends[size] = end
    for one in order:
        moved[place_of_size[slots[one]]] = one
        place_of_size[slots[one]] += 1
    return moved, ends


@kernel
def place_items(
    runs: Runs, order: NDArray[np.uint32], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Give the places of every size, row by row, the items of that size in their order.

    Args:
        order, ends: made by :func:`in_keyed_order`.

    Returns:
        the item at every place, (I,); items of every row, (R,).
    """
    ends = ends.copy()
    item = np.empty(len(order), np.uint32)
    counts = np.empty(count_rows(runs), np.int64)
    place, row = len(item), len(counts)  # from the last: piles and contents are known from their ends
    for room in range(len(runs.top) - 1, -1, -1):
        run = runs.top[room]
        while run >= 0:
            for _ in range(runs.table[run, ROWS] if runs.table[run, SEGMENTS] else 0):
                row -= 1
                counts[row] = runs.table[run, SEGMENTS]
                part = run
                while part >= 0:
                    size = runs.table[part, SIZE]
                    for _ in range(runs.table[part, TIMES]):
                        place -= 1
                        ends[size] -= 1
                        item[place] = order[ends[size]]
                    part = runs.table[part, MADE_FROM]
            run = runs.table[run, BELOW]
    return item, counts


@kernel
def count_items(slots: NDArray[np.int64], num_slots: int) -> NDArray[np.int64]:
    """Items of every size, (S+1,)."""
    num_items = np.zeros(num_slots + 1, np.int64)
    for size in slots:
        num_items[size] += 1
    return num_items


@kernel
def fit_items(
    slots: NDArray[np.int64], num_slots: int, max_segments: int, base_key: np.uint64
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Pack items into rows.

    Args:
        slots: of every item, special tokens included, 1 .. S, (I,); fewer than ``keyed.MAX_PERMUTATION``.
        num_slots: S.
        max_segments: most items a row.
        base_key: assigns the items to the places of their size.

    Returns:
        the item at every place, row by row, (I,); items of every row, (R,).
    """
    num_items = count_items(slots, num_slots)
    order, ends = in_keyed_order(slots, num_items, base_key)
    return place_items(pack(num_items, num_slots, max_segments), order, ends)


@kernel
def count_fitted_rows(slots: NDArray[np.int64], num_slots: int, max_segments: int) -> int:
    """Rows that :func:`fit_items` needs."""
    return count_rows(pack(count_items(slots, num_slots), num_slots, max_segments))
