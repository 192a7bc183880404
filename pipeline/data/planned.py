"""Rows of which only the plan is known: what stands in them, from indexes alone, before any token is read.

Letters: R rows, P pieces, U runs (rows at consecutive places of one window), C shards that rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.phase import Phase, PhasePlaces
from pipeline.data.pieces import from_integers
from pipeline.data.windows import Window
from pipeline.shards.reader import Shard


@dataclass(frozen=True, eq=False)
class Planned:
    """R rows."""

    numbers: NDArray[np.int64]
    """Run-wide numbers, (R,)."""

    epoch: NDArray[np.int64]
    """Epoch of every row in its source, (R,)."""

    source: NDArray[np.int64]
    """Source of every row, (R,)."""

    shard: NDArray[np.int64]
    """Shard of every row, (R,)."""

    counts: NDArray[np.int64]
    """Pieces of every row, (R,)."""

    pieces: NDArray[np.void]
    """Pieces row after row, (P,) of ``pieces.PIECE``."""

    def shards(self) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
        """(source, shard) of the C shards that rows come from, and which of them every row does, (R,)."""
        distinct, of_row = np.unique((self.source << 32) | self.shard, return_inverse=True)
        return [(one >> 32, one & 0xFFFFFFFF) for one in distinct.tolist()], of_row


def plan_rows(numbers: NDArray[np.int64], found: PhasePlaces, phase: Phase, step: int) -> Planned:
    """Plan rows of a phase by their run-wide numbers and places, (R,); ``step`` is the last that asks for them."""
    source, epoch = found.source, found.places.epoch
    window, place = window_places(phase, source, epoch, found.places.position)
    # Window by window, so that rows of more windows than are kept plan each of them once; in one, by place: then the
    # rows that one lane gives to several steps stand side by side, and are taken together.
    order = np.lexsort((place, window, epoch, source))
    columns = [column[order] for column in (source, epoch, window, place)]  # (R,) each
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = columns[3][1:] != columns[3][:-1] + 1
    for column in columns[:3]:
        is_first[1:] |= column[1:] != column[:-1]
    begin = np.flatnonzero(is_first)  # (U,)
    sizes = np.diff(begin, append=len(order))
    windows = _windows_of_runs(phase, [column[begin].tolist() for column in columns], step)
    first = (columns[3][begin] - [planned.first_place for planned in windows]).tolist()
    pieces, borders, shards = [], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
    for planned, at, size in zip(windows, first, sizes.tolist(), strict=True):
        of_window = planned.first_piece
        borders.append(of_window[at : at + size + 1])
        pieces.append(planned.pieces[of_window.item(at) : of_window.item(at + size)])
        shards.append(planned.shard if len(planned.shard) == 1 else planned.shard[at : at + size])
    joined = from_integers(pieces)  # (P,) as `order` has them
    within_run = np.ones(len(order) + len(sizes), np.bool_)
    within_run[np.cumsum(sizes + 1) - 1] = False  # from the end of a run to the begin of the next
    joined_borders = np.concatenate(borders)
    in_order = (joined_borders[1:] - joined_borders[:-1])[within_run[:-1]]  # (R,)
    given = np.array([len(shard) for shard in shards[1:]], np.int64)  # (U,) one for all rows of a run, or one a row
    shard_in_order = np.repeat(np.concatenate(shards), np.repeat(np.where(given < sizes, sizes, 1), given))
    own_counts, shard, first_piece = (np.empty(len(order), np.int64) for _ in range(3))
    own_counts[order], shard[order] = in_order, shard_in_order
    first_piece[order] = np.cumsum(in_order) - in_order
    moved = np.repeat(first_piece - (np.cumsum(own_counts) - own_counts), own_counts)  # (P,)
    return Planned(numbers, epoch, source, shard, own_counts, joined[moved + np.arange(len(joined))])


def _windows_of_runs(phase: Phase, columns: list[list[int]], step: int) -> list[Window]:
    """Window of every run, U of them, from (source, epoch, window, first place); runs of a window stand together."""
    windows: list[Window] = []
    last = None
    for source, epoch, number, place in zip(*columns, strict=True):
        if (source, epoch, number) != last:
            last = (source, epoch, number)
            window = phase.windows[source].window((epoch, number), place, step)
        windows.append(window)
    return windows


def window_places(
    phase: Phase, source: NDArray[np.int64], epoch: NDArray[np.int64], position: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Window of every row, and place in it, (R,) each."""
    window, place = np.empty_like(position), np.empty_like(position)
    for number, windows in enumerate(phase.windows):
        of_source = source == number
        for one in np.unique(epoch[of_source]).tolist():
            here = of_source & (epoch == one)
            first_row = windows.epoch(one).first_row
            window[here] = np.searchsorted(first_row, position[here], side="right") - 1
            place[here] = position[here] - first_row[window[here]]
    return window, place


def check_blocks(planned: Planned, shards: Sequence[Shard], shard_of_row: NDArray[np.int64]) -> None:
    """Let every shard verify the blocks that are about to be read.

    Args:
        shards, shard_of_row: the C shards that rows come from, and which of them every row does, (R,).

    Raises:
        UserError: a damaged shard.
    """
    unchecked = [number for number, shard in enumerate(shards) if not shard.is_checked]
    if not unchecked:
        return
    shard_of_piece = np.repeat(shard_of_row, planned.counts)  # (P,)
    order = np.argsort(shard_of_piece, kind="stable")
    documents = planned.pieces["document"][order]
    borders = np.searchsorted(shard_of_piece[order], np.arange(len(shards) + 1)).tolist()
    for number in unchecked:
        shard = shards[number]
        shard.check_blocks(shard.index.block_of(documents[borders[number] : borders[number + 1]]))
