"""Rows of which only the plan is known: what stands in them, from indexes alone, before any token is read.

Letters: R rows, P pieces, C shards that rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.part_kernels import pieces_of_rows, take_rows
from pipeline.data.phase import Phase, PhasePlaces
from pipeline.data.pieces import as_pieces
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
    source, epoch, position = found.source, found.places.epoch, found.places.position
    where, places = np.empty((len(numbers), 5), np.uint64), np.empty_like(position)
    held = []
    for number, windows in enumerate(phase.windows):
        rows = slice(None) if len(phase.windows) == 1 else np.flatnonzero(source == number)
        window, places[rows], part = windows.names_of(epoch[rows], position[rows])
        names, at = windows.missing(epoch[rows], window, part)
        if names:
            if len(numbers) > windows.capacity:
                return _plan_in_chunks(numbers, found, phase, step)
            at = windows.add(names, step, epoch[rows], window, part)
        where[rows] = windows.where(at, step)
        held.append(windows.parts)  # the kernel reads them by their addresses
    words, counts, shard = pieces_of_rows(where, places)
    del held
    return Planned(numbers, epoch, source, shard, counts, as_pieces(words))


def _plan_in_chunks(numbers: NDArray[np.int64], found: PhasePlaces, phase: Phase, step: int) -> Planned:
    """Window by window, so that rows of more parts than are kept plan each of them once."""
    order = np.lexsort((found.places.position, found.places.epoch, found.source))
    most = min(windows.capacity for windows in phase.windows)
    chunks = [order[first : first + most] for first in range(0, len(order), most)]
    parts = [plan_rows(numbers[chunk], found.taken(chunk), phase, step) for chunk in chunks]
    return _reordered(numbers, found, parts, order)


def _reordered(
    numbers: NDArray[np.int64], found: PhasePlaces, parts: list[Planned], order: NDArray[np.int64]
) -> Planned:
    """Rows ``order[0], order[1], ...``, planned in parts, as they were asked for."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    counts, shard = (np.concatenate([getattr(part, name) for part in parts]) for name in ("counts", "shard"))
    joined = np.concatenate([part.pieces for part in parts]).view(np.uint32).reshape(-1, 4)
    words, _ = take_rows(joined, np.concatenate([[0], np.cumsum(counts)]), back)
    return Planned(numbers, found.places.epoch, found.source, shard[back], counts[back], as_pieces(words))


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
