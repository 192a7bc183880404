"""Compiled loops over the planned parts of windows: which one a row is in, and the pieces of rows of many parts.

Letters: T rows asked for, C parts that there is room for, H hash buckets, R rows of a shard or part, K pieces, P pieces
of the rows asked for, B windows of an epoch, D documents of a shard.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.keyed_kernels import mix_u64
from pipeline.base.memory_kernels import array_at


@kernel
def parts_of(
    position: NDArray[np.int64], first_row: NDArray[np.int64], part_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Window of every row, its place in it, and the part that this is in, (T,) each.

    Args:
        position: of every row in its epoch, (T,).
        first_row: rows before every window of the epoch, (B,).
        part_rows: rows of a part. The first part of a window is shorter, so that lanes do not all enter a new part at
            once where they entered their windows together.
    """
    window, place, part = np.empty_like(position), np.empty_like(position), np.empty_like(position)
    for row in range(len(position)):
        low, high = 0, len(first_row)
        while high - low > 1:
            middle = (low + high) // 2
            if first_row[middle] <= position[row]:
                low = middle
            else:
                high = middle
        window[row], place[row] = low, position[row] - first_row[low]
        part[row] = (place[row] + rows_before(low, part_rows)) // part_rows
    return window, place, part


@kernel
def rows_before(window: int, part_rows: int) -> int:
    """Rows by which the first part of a window is shorter than the others."""
    return window * 1_640_531_527 % part_rows


@kernel
def _bucket(epoch: int, window: int, part: int, num_buckets: int) -> np.uint64:
    mixed = mix_u64(mix_u64(mix_u64(np.uint64(epoch)) + np.uint64(window)) + np.uint64(part))
    return mixed & np.uint64(num_buckets - 1)


@kernel
def hash_names(names: NDArray[np.int64]) -> NDArray[np.int32]:
    """A table for :func:`find_parts`, (H,): in every bucket a row of ``names``, (C, 3), or -1. An epoch of -1 is no
    name."""
    num_buckets = 16
    while num_buckets < 2 * len(names):
        num_buckets *= 2
    buckets = np.full(num_buckets, -1, np.int32)
    for number in range(len(names)):
        if names[number, 0] >= 0:
            at = _bucket(names[number, 0], names[number, 1], names[number, 2], num_buckets)
            while buckets[at] >= 0:
                at = (at + np.uint64(1)) & np.uint64(num_buckets - 1)
            buckets[at] = number
    return buckets


@kernel
def find_parts(
    names: NDArray[np.int64],
    buckets: NDArray[np.int32],
    epoch: NDArray[np.int64],
    window: NDArray[np.int64],
    part: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Which of ``names``, (C, 3), is (epoch, window, part) of every row, or -1, (T,)."""
    found = np.full(len(epoch), -1, np.int64)
    mask = np.uint64(len(buckets) - 1)
    for row in range(len(epoch)):
        at = _bucket(epoch[row], window[row], part[row], len(buckets))
        while buckets[at] >= 0:
            name = names[buckets[at]]
            if name[0] == epoch[row] and name[1] == window[row] and name[2] == part[row]:
                found[row] = buckets[at]
                break
            at = (at + np.uint64(1)) & mask
    return found


@kernel
def take_rows(
    words: NDArray[np.uint32], first_piece: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The words of the pieces of some rows, (K', 4), and the first piece of each, then K', (T+1,).

    Args:
        words: of the pieces of all rows, (K, 4).
        first_piece: first piece of every row, then K, (R+1,).
        rows: T of them, in any order.
    """
    border = np.zeros(len(rows) + 1, np.int64)
    for turn in range(len(rows)):
        border[turn + 1] = border[turn] + first_piece[rows[turn] + 1] - first_piece[rows[turn]]
    taken = np.empty((border[-1], 4), np.uint32)
    for turn in range(len(rows)):
        begin = first_piece[rows[turn]]
        for piece in range(border[turn + 1] - border[turn]):
            for word in range(4):
                taken[border[turn] + piece, word] = words[begin + piece, word]
    return taken, border


@kernel
def locate_words(words: NDArray[np.uint32], starts: NDArray[np.int64]) -> None:
    """``pieces.locate`` of pieces as words, (K, 4); ``starts``: first item of every document, (D,)."""
    for piece in range(len(words)):
        words[piece, 0] = starts[words[piece, 1]] + words[piece, 2]


@kernel
def pieces_of_rows(
    where: NDArray[np.uint64], places: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """The pieces of rows of many parts.

    Args:
        where: the part of every row: its first place, its number of rows, and the addresses of ``Part.first_piece``,
            ``words`` and ``shard``, (T, 5). The caller keeps the arrays alive.
        places: of the rows in their windows, (T,).

    Returns:
        words of the pieces, row after row, (P, 4); pieces of every row, (T,); shard of every row, (T,).

    Raises:
        IndexError: a row that is not in its part: a bug.
    """
    word = np.zeros(1, np.uint32)  # of this type are all three arrays
    first, counts, shard = np.empty_like(places), np.empty_like(places), np.empty_like(places)
    num_pieces = 0
    for row in range(len(places)):
        at = places[row] - np.int64(where[row, 0])
        num_rows = np.int64(where[row, 1])
        if at < 0 or at >= num_rows:
            raise IndexError("a row is not in the part that was planned for it")
        borders = array_at(where[row, 2], num_rows + 1, word)
        first[row] = borders[at]
        counts[row] = borders[at + 1] - borders[at]
        shard[row] = array_at(where[row, 4], num_rows, word)[at]
        num_pieces += counts[row]
    words = np.empty((num_pieces, 4), np.uint32)
    place = 0
    for row in range(len(places)):
        own = array_at(where[row, 3], 4 * (first[row] + counts[row]), word)
        for piece in range(first[row], first[row] + counts[row]):
            for column in range(4):
                words[place, column] = own[4 * piece + column]
            place += 1
    return words, counts, shard
