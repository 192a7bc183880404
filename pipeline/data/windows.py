"""Windows: the packed rows of a few shards in their keyed order, planned when a lane enters them and kept while in use.

Everything kept here is a cache of a pure function; dropping it at any moment changes no row.

Letters: R rows of a window, K pieces, M shards of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.data.order import CUTS, DOCUMENTS, EpochOrder, SourceOrder
from pipeline.data.packing import Packing
from pipeline.data.pieces import as_integers, locate
from pipeline.data.rows import RowFormat
from pipeline.data.source import OpenSource, Recent
from pipeline.shards.layout import shard_name

WindowName = tuple[int, int]
"""(epoch, number of the window in it)."""

_SPARE_SHARDS: Final = 32


@dataclass(frozen=True, eq=False)
class Window:
    """A window of an epoch, in the order in which its lane reads it."""

    first_place: int
    """Place of the first row that is kept: those that have been read are given up as the lane moves on."""

    first_piece: NDArray[np.uint32]
    """First piece of the row at every kept place, then K, (R+1,)."""

    pieces: NDArray[np.int64]
    """Pieces with their places in the tars, made by ``pieces.as_integers``, (K, 2)."""

    shard: NDArray[np.uint32]
    """Shard of the row at every kept place, (R,); of a window of one shard, (1,)."""

    def without_read(self, place: int) -> Window:
        """The window from ``place`` on, where that frees more than half of it."""
        read = place - self.first_place
        if 2 * read < len(self.first_piece):
            return self
        begin = self.first_piece[read]
        shard = self.shard if len(self.shard) == 1 else self.shard[read:].copy()
        return Window(place, self.first_piece[read:] - begin, self.pieces[begin:].copy(), shard)


@dataclass(eq=False)
class _Kept:
    """A planned window in use."""

    window: Window
    last_step: int
    """The last step that asked for it, or will."""

    place: int
    """Where its lane was then."""


class Windows:
    """Plans the windows of one source in one phase; opens indexes, and tars only where a packing needs sentences."""

    def __init__(self, source: OpenSource, packing: Packing, row_format: RowFormat, order: SourceOrder) -> None:
        self.source = source
        self.packing = packing
        self.row_format = row_format
        self.order = order
        self.epoch: Recent[int, EpochOrder] = Recent(order.epoch, 16)
        # At an epoch's edge every lane has a window that it leaves and one that it enters.
        self.capacity = 2 * order.lanes + max(2, _SPARE_SHARDS // order.window_shards)
        self._planned: dict[WindowName, _Kept] = {}
        self._begun: dict[WindowName, list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = {}

    def __contains__(self, name: WindowName) -> bool:
        return name in self._planned

    @property
    def is_full(self) -> bool:
        """Whether one more window would drop another."""
        return len(self._planned) >= self.capacity

    def window(self, name: WindowName, place: int, step: int) -> Window:
        """A window of which ``step`` reads the rows from ``place`` on, planned now if it has not been."""
        kept = self._planned.get(name)
        if kept is None or place < kept.window.first_place:
            return self._keep(name, self._plan(name).without_read(place), step)
        kept.place = place
        if step > kept.last_step:
            kept.last_step = step
        return kept.window

    def _keep(self, name: WindowName, window: Window, step: int) -> Window:
        self._planned[name] = _Kept(window, step, window.first_place)
        if len(self._planned) > self.capacity:
            del self._planned[min(self._planned, key=lambda name: self._planned[name].last_step)]
        return window

    def expire(self, step: int) -> None:
        """Drop the windows that no step from ``step`` on has asked for, and of the others what has been read."""
        self._planned = {name: kept for name, kept in self._planned.items() if kept.last_step >= step}
        for kept in self._planned.values():
            kept.window = kept.window.without_read(kept.place)

    def forget_steps(self) -> None:
        """The steps begin anew elsewhere: what is planned stays as long as there is room."""
        self._begun.clear()
        for kept in self._planned.values():
            kept.last_step = -1

    def shards_of(self, name: WindowName) -> list[int]:
        """Shards of a window, (M,)."""
        epoch, window = name
        first = window * self.order.window_shards
        return self.epoch(epoch).shards[first : first + self.order.window_shards].tolist()

    def advance(self, name: WindowName, step: int) -> bool:
        """Plan one more shard of a window that ``step`` will read; true when the window is whole."""
        if name in self._planned:
            return True
        shards = self.shards_of(name)
        done = self._begun.setdefault(name, [])
        done.append(self.plan_shard(name[0], shards[len(done)]))
        if len(done) < len(shards):
            return False
        self._keep(name, self._plan(name), step)
        return True

    def _plan(self, name: WindowName) -> Window:
        epoch, window = name
        shards = self.shards_of(name)
        done = self._begun.pop(name, [])
        done += [self.plan_shard(epoch, shard) for shard in shards[len(done) :]]
        # Packed rows, shard after shard; the keyed order then says which of them stands at every place.
        num_pieces = np.cumsum([0, *(len(pieces) for pieces, _ in done)]).tolist()
        first = np.concatenate([borders[:-1] + shift for (_, borders), shift in zip(done, num_pieces, strict=False)])
        row_at = self.order.window_rows(epoch, window, len(first))
        counts = np.concatenate([np.diff(borders) for _, borders in done])[row_at]
        begin = np.concatenate([[0], np.cumsum(counts)])  # (R+1,)
        moved = np.repeat(first[row_at] - begin[:-1], counts)  # (K,)
        moved += np.arange(len(moved))
        shard = np.array(shards, np.uint32)
        if len(shards) > 1:
            shard = np.repeat(shard, [len(borders) - 1 for _, borders in done])[row_at]
        pieces = done[0][0] if len(done) == 1 else np.concatenate([pieces for pieces, _ in done])
        return Window(0, begin.astype(np.uint32), np.take(pieces, moved, axis=0), shard)

    def plan_shard(self, epoch: int, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The packed rows of a shard in an epoch.

        Returns:
            pieces made by ``pieces.as_integers``, (K, 2), and the first piece of every row, then K.

        Raises:
            UserError: the index is damaged, or does not fit the row table.
        """
        index = self.source.index(shard)
        seed, source = self.order.seed, self.order.source
        plan = self.packing.plan(
            self.source.lengths(shard, index, self.packing.needs_sentences),
            self.row_format,
            key(seed, DOCUMENTS, source, epoch, shard),
            key(seed, CUTS, source, epoch, shard),
        )
        expected = int(self.order.rows_per_shard[shard])
        if plan.num_rows != expected:
            files = self.source.files
            anew = "make it with `pretrain corpus count-rows` and upload it" if files.is_remote else "it is made again"
            raise UserError(
                f"Shard {shard_name(self.source.split, shard)} packs into {plan.num_rows} rows, but the row table says "
                f"{expected}: the table under {files.describe('rows')} is of another corpus or damaged. "
                f"Delete that folder; {anew}."
            )
        locate(plan.pieces, index.starts)
        return as_integers(plan.pieces), plan.first_piece
