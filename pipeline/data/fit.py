"""Best-fit decreasing over runs of equal rows: how many rows a histogram of sizes needs, and what stands in each.

The textbook algorithm (Johnson 1973) takes items by decreasing size and puts each into the row with the least room that
holds it. Items of a size are alike, and so are rows with the same content, so runs of them are moved at once; a big
integer whose bit ``r`` says that some row has ``r`` slots left finds the tightest room.

Letters: S sequence length (slots of a row), R rows, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Content: TypeAlias = "tuple[Content, int, int] | None"
"""What stands in a row, newest first: (content before, size, number of items of that size)."""


Run: TypeAlias = tuple[int, int, Content]
"""Rows with the same content: (number of rows, items a row, content). Plain tuples: a shard makes thousands."""


class _Rows:
    """Rows that may take more, by room; and closed ones."""

    def __init__(self, num_slots: int, max_segments: int) -> None:
        self.num_slots = num_slots
        self.max_segments = max_segments
        self.by_room: list[list[Run]] = [[] for _ in range(num_slots + 1)]
        self.rooms = 0
        self.closed: list[Run] = []
        self.bound_met = False

    def put(self, room: int, run: Run) -> None:
        if room and run[1] < self.max_segments:
            self.by_room[room].append(run)
            self.rooms |= 1 << room
        else:
            self.closed.append(run)
            self.bound_met |= room > 0

    def take(self, room: int) -> Run:
        runs = self.by_room[room]
        run = runs.pop()
        if not runs:
            self.rooms ^= 1 << room
        return run

    def add_best_fit(self, size: int, num_items: int) -> None:
        """Place items of one size, each into the tightest row; among equals, the row changed last."""
        # The hot loop of planning: `put` and `take` stand in it as they are, since calls would double its time.
        by_room, rooms, most, num_slots = self.by_room, self.rooms, self.max_segments, self.num_slots
        while num_items:
            wide_enough = rooms >> size
            if wide_enough:
                room = size + (wide_enough & -wide_enough).bit_length() - 1
                runs = by_room[room]
                num_rows, num_segments, content = runs.pop()
                if not runs:
                    rooms ^= 1 << room
            else:
                room, num_segments, content = num_slots, 0, None
                num_rows = -(-num_items // min(room // size, most))
            # A row that took one item is now the tightest, so it takes the next ones too, until full.
            fit = room // size
            if fit > most - num_segments:
                fit = most - num_segments
            filled = num_items // fit
            rest = left = 0
            if filled >= num_rows:
                filled = num_rows
                num_items -= filled * fit
            else:
                rest = num_items - filled * fit  # fewer than `fit`: the run was long enough for all items
                left = num_rows - filled - (rest > 0)
                num_items = 0
            if left:
                by_room[room].append((left, num_segments, content))
                rooms |= 1 << room
            if filled:
                now, segments = room - fit * size, num_segments + fit
                if now and segments < most:
                    by_room[now].append((filled, segments, (content, size, fit)))
                    rooms |= 1 << now
                else:
                    self.closed.append((filled, segments, (content, size, fit)))
                    self.bound_met |= now > 0
            if rest:  # of fewer items than fit: there is room and the bound is not met
                now = room - rest * size
                by_room[now].append((1, num_segments + rest, (content, size, rest)))
                rooms |= 1 << now
        self.rooms = rooms

    def add_roomiest(self, size: int, num_items: int) -> int:
        """Place items of one size, one a row, into the roomiest rows; return how many fitted nowhere."""
        while num_items and (room := self.rooms.bit_length() - 1) >= size:
            num_rows, num_segments, content = self.take(room)
            dealt = min(num_rows, num_items)
            num_items -= dealt
            if num_rows > dealt:
                self.put(room, (num_rows - dealt, num_segments, content))
            self.put(room - size, (dealt, num_segments + 1, (content, size, 1)))
        return num_items

    def runs(self) -> list[Run]:
        return [run for run in self.closed + [run for runs in self.by_room for run in runs] if run[1]]


def best_fit_decreasing(num_items: Sequence[int], num_slots: int, max_segments: int) -> tuple[list[Run], bool]:
    """Pack ``num_items[size]`` items of every size into rows of ``num_slots``.

    Returns:
        the runs, and whether some row was closed with room left because it had ``max_segments`` items.
    """
    rows = _Rows(num_slots, max_segments)
    for size in range(len(num_items) - 1, 0, -1):
        if num_items[size]:
            rows.add_best_fit(size, num_items[size])
    return rows.runs(), rows.bound_met


def deal_small_items(num_items: Sequence[int], num_slots: int, max_segments: int) -> list[Run]:
    """Pack as :func:`best_fit_decreasing`, but spread items up to ``num_slots // 8`` evenly, so that no row fills up
    with tiny ones: three in four go to the roomiest row each, the fourth fills what is left, by best fit."""
    small = num_slots // 8
    rows = _Rows(num_slots, max_segments)
    for size in range(len(num_items) - 1, small, -1):
        if num_items[size]:
            rows.add_best_fit(size, num_items[size])
    needed = max(
        -(-sum(size * count for size, count in enumerate(num_items)) // num_slots), -(-sum(num_items) // max_segments)
    )
    missing = needed - count_rows(rows.runs())
    if missing > 0:
        rows.put(num_slots, (missing, 0, None))
    kept_back = [0] * (small + 1)
    for size in range(small, 0, -1):
        count = num_items[size]
        kept_back[size] = count // 4
        kept_back[size] += rows.add_roomiest(size, count - kept_back[size])
    for size in range(small, 0, -1):
        if kept_back[size]:
            rows.add_best_fit(size, kept_back[size])
    return rows.runs()


def count_rows(runs: Sequence[Run]) -> int:
    """Rows of all runs."""
    return sum(num_rows for num_rows, _, _ in runs)


def pack(num_items: Sequence[int], num_slots: int, max_segments: int) -> list[Run]:
    """Rows for a histogram: best-fit decreasing; if the bound on segments costs rows, the better of it and dealing.

    Args:
        num_items: items of every size, index 0 unused; sizes up to ``num_slots``.
        num_slots: S.
        max_segments: most items a row.
    """
    runs, bound_met = best_fit_decreasing(num_items, num_slots, max_segments)
    if not bound_met:
        return runs
    unbounded, _ = best_fit_decreasing(num_items, num_slots, num_slots)
    if count_rows(runs) == count_rows(unbounded):
        return runs
    dealt = deal_small_items(num_items, num_slots, max_segments)
    return dealt if count_rows(dealt) < count_rows(runs) else runs


def expand(runs: Sequence[Run]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Runs to rows.

    Returns:
        sizes of all items, row by row, each row's largest first as placed, (I,); items of every row, (R,).
    """
    sizes: list[int] = []
    for _, _, content in reversed(runs):
        while content is not None:
            content, size, times = content
            if times == 1:
                sizes.append(size)
            else:
                sizes += [size] * times
    sizes.reverse()  # contents are newest first
    num_rows = np.array([run[0] for run in runs], np.int64)
    items_a_row = np.array([run[1] for run in runs], np.int64)
    first_of_run = np.repeat(np.cumsum(items_a_row) - items_a_row, num_rows)  # (R,) its row's first item in `sizes`
    counts = np.repeat(items_a_row, num_rows)
    first_of_row = np.cumsum(counts) - counts
    place = np.arange(counts.sum()) - np.repeat(first_of_row - first_of_run, counts)  # (I,)
    return np.array(sizes, np.uint16)[place], counts
