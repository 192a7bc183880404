"""Windows: the packed rows of a few shards in their keyed order, planned a part at a time and kept while in use.

A lane reads a window from its begin to its end, over thousands of steps. Only the part that it is in is kept: planning
a shard again for the next part costs a millisecond, and keeping whole windows would cost a process many megabytes.

Everything kept here is a cache of a pure function; dropping it at any moment changes no row.

Letters: R rows of a part, K pieces, M shards of a window, T rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.base.memory_kernels import address_of
from pipeline.data.order import CUTS, DOCUMENTS, EpochOrder, SourceOrder
from pipeline.data.packing import Packing
from pipeline.data.part_kernels import find_parts, hash_names, locate_words, parts_of, rows_before, take_rows
from pipeline.data.pieces import ShardPlan
from pipeline.data.rows import RowFormat
from pipeline.data.source import OpenSource, Recent
from pipeline.shards.index import ShardIndex
from pipeline.shards.layout import shard_name

PartName = tuple[int, int, int]
"""(epoch, number of the window in it, number of the part in that)."""

ROWS_OF_PARTS: Final = 1 << 18
"""Rows of the parts that all lanes of a source are in, together: some 30 bytes each."""

LEAST_ROWS: Final = 512
"""Of every shard of a part: fewer would be planned too often."""

_SPARE_SHARDS: Final = 32


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive rows of a window of an epoch, in the order in which its lane reads them."""

    first_place: int
    """Place of the first row in the window."""

    first_piece: NDArray[np.uint32]
    """First piece of every row, then K, (R+1,)."""

    words: NDArray[np.uint32]
    """Pieces with their places in the tars, as ``pieces.as_pieces`` reads them, (K, 4)."""

    shard: NDArray[np.uint32]
    """Shard of every row, (R,)."""


@dataclass(eq=False)
class _Begun:
    """A part of which some shards have been planned."""

    rows: NDArray[np.int64]
    """Packed rows, counted over the window's shards, at its places, (R,)."""

    done: list[tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]]
    """Of every shard so far: its rows in the part, the words of their pieces, and the first piece of each."""


class Windows:
    """Plans the windows of one source in one phase; opens indexes, and tars only where a packing needs sentences."""

    def __init__(self, source: OpenSource, packing: Packing, row_format: RowFormat, order: SourceOrder) -> None:
        self.source = source
        self.packing = packing
        self.row_format = row_format
        self.order = order
        self.epoch: Recent[int, EpochOrder] = Recent(order.epoch, 16)
        self.part_rows = max(LEAST_ROWS, ROWS_OF_PARTS // order.open_shards) * order.window_shards
        # At the end of a part, and at an epoch's edge, a lane has one that it leaves and one that it enters.
        self.capacity = 2 * order.lanes + max(2, _SPARE_SHARDS // order.window_shards)
        self._begun: dict[PartName, _Begun] = {}
        self._planned: dict[PartName, int] = {}
        """Place of every planned part in the tables that follow."""
        self._parts: list[Part | None] = []
        self._names = np.zeros((0, 3), np.int64)
        self._where = np.zeros((0, 5), np.uint64)
        self._last_step = np.zeros(0, np.int64)
        self._buckets: NDArray[np.int32] | None = None

    def __contains__(self, name: PartName) -> bool:
        return name in self._planned

    @property
    def is_full(self) -> bool:
        """Whether one more part would drop another."""
        return len(self._planned) >= self.capacity

    @property
    def parts(self) -> list[Part]:
        """What is planned."""
        return [part for part in self._parts if part is not None]

    def names_of(
        self, epoch: NDArray[np.int64], position: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Window of every row, its place in it, and the part that this is in, (T,) each."""
        window, place, part = np.empty_like(position), np.empty_like(position), np.empty_like(position)
        epochs = [int(epoch[0])] if len(epoch) and (epoch == epoch[0]).all() else np.unique(epoch).tolist()
        for one in epochs:
            here = slice(None) if len(epochs) == 1 else epoch == one
            window[here], place[here], part[here] = parts_of(position[here], self.epoch(one).first_row, self.part_rows)
        return window, place, part

    def missing(
        self, epoch: NDArray[np.int64], window: NDArray[np.int64], part: NDArray[np.int64]
    ) -> tuple[list[PartName], NDArray[np.int64]]:
        """The parts of rows that are not planned, in order, and the places in the tables of all, or -1, (T,)."""
        if self._buckets is None:
            self._buckets = hash_names(self._names)
        found = find_parts(self._names, self._buckets, epoch, window, part)
        unplanned = np.flatnonzero(found < 0)
        columns = (column[unplanned].tolist() for column in (epoch, window, part))
        return sorted(set(zip(*columns, strict=True))), found

    def add(
        self,
        names: list[PartName],
        step: int,
        epoch: NDArray[np.int64],
        window: NDArray[np.int64],
        part: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Plan the parts that :meth:`missing` named for these rows, of no more parts than ``capacity``.

        Returns:
            the places in the tables of all of them, (T,).
        """
        for name in names:
            self._add(name, self._plan(name), step)
        _, found = self.missing(epoch, window, part)
        self._drop(len(self._planned) - self.capacity, found)
        return found

    def where(self, found: NDArray[np.int64], step: int) -> NDArray[np.uint64]:
        """Where the parts of rows lie, for ``part_kernels.pieces_of_rows``, (T, 5).

        Args:
            found: their places in the tables, (T,).
            step: the last that asks for them.
        """
        self._last_step[found] = np.maximum(self._last_step[found], step)
        return self._where[found]

    def _add(self, name: PartName, part: Part, step: int) -> None:
        if len(self._planned) == len(self._parts):
            more = len(self._parts) + 16
            self._parts += [None] * more
            self._names = np.concatenate([self._names, np.full((more, 3), -1)])
            self._where = np.concatenate([self._where, np.zeros((more, 5), np.uint64)])
            self._last_step = np.concatenate([self._last_step, np.zeros(more, np.int64)])
        at = self._parts.index(None)
        self._planned[name], self._parts[at], self._names[at], self._last_step[at] = at, part, name, step
        addresses = (address_of(array) for array in (part.first_piece, part.words, part.shard))
        self._where[at] = (part.first_place, len(part.shard), *addresses)
        self._buckets = None

    def _drop(self, num_parts: int, in_use: NDArray[np.int64]) -> None:
        """Give up the parts that were asked for longest ago, but none of the places ``in_use``."""
        if num_parts > 0:
            used = set(in_use.tolist())
            others = [name for name, at in self._planned.items() if at not in used]
            for name in sorted(others, key=lambda name: self._last_step[self._planned[name]])[:num_parts]:
                self._remove(name)

    def _remove(self, name: PartName) -> None:
        at = self._planned.pop(name)
        self._parts[at], self._names[at] = None, -1
        self._buckets = None

    def expire(self, step: int) -> None:
        """Drop the parts that no step from ``step`` on has asked for."""
        for name in [name for name, at in self._planned.items() if self._last_step[at] < step]:
            self._remove(name)

    def forget_steps(self) -> None:
        """The steps begin anew elsewhere: what is planned stays as long as there is room."""
        self._begun.clear()
        self._last_step[:] = -1

    def shards_of(self, epoch: int, window: int) -> list[int]:
        """Shards of a window, (M,)."""
        first = window * self.order.window_shards
        return self.epoch(epoch).shards[first : first + self.order.window_shards].tolist()

    def advance(self, name: PartName, step: int) -> bool:
        """Plan one more shard of a part that ``step`` will read; true when the part is whole."""
        if name in self._planned:
            return True
        begun = self._begin(name)
        self._plan_next(name, begun)
        if len(begun.done) < len(self.shards_of(*name[:2])):
            return False
        self._add(name, self._finish(name, begun), step)
        self._drop(len(self._planned) - self.capacity, np.array([self._planned[name]]))
        return True

    def _plan(self, name: PartName) -> Part:
        begun = self._begin(name)
        for _ in self.shards_of(*name[:2])[len(begun.done) :]:
            self._plan_next(name, begun)
        return self._finish(name, begun)

    def _first_place(self, name: PartName) -> int:
        return max(0, name[2] * self.part_rows - int(rows_before(name[1], self.part_rows)))

    def _begin(self, name: PartName) -> _Begun:
        if name not in self._begun:
            epoch, window, _ = name
            num_rows = int(self.order.rows_per_shard[self.shards_of(epoch, window)].sum())
            end = self._first_place((epoch, window, name[2] + 1))
            rows = self.order.window_rows(epoch, window, num_rows)[self._first_place(name) : end]
            self._begun[name] = _Begun(rows, [])
        return self._begun[name]

    def _plan_next(self, name: PartName, begun: _Begun) -> None:
        """Plan the next shard, and keep the rows that the part has of it."""
        shards = self.shards_of(*name[:2])
        shard = shards[len(begun.done)]
        plan, index = self.plan_shard(name[0], shard)
        first_row = int(self.order.rows_per_shard[shards[: len(begun.done)]].sum())
        rows = begun.rows - first_row
        own = np.flatnonzero((rows >= 0) & (rows < plan.num_rows)) if len(shards) > 1 else np.arange(len(rows))
        words, border = take_rows(plan.words, plan.first_piece, rows[own])
        locate_words(words, index.starts)
        begun.done.append((own, words, border))

    def _finish(self, name: PartName, begun: _Begun) -> Part:
        del self._begun[name]
        shard = np.empty(len(begun.rows), np.uint32)
        for number, (own, _, _) in zip(self.shards_of(*name[:2]), begun.done, strict=True):
            shard[own] = number
        words, border = begun.done[0][1:]
        if len(begun.done) > 1:
            counts = np.concatenate([np.diff(one) for _, _, one in begun.done])
            order = np.argsort(np.concatenate([own for own, _, _ in begun.done]))
            words, border = take_rows(
                np.concatenate([words for _, words, _ in begun.done]), np.cumsum([0, *counts]), order
            )
        return Part(self._first_place(name), border.astype(np.uint32), words, shard)

    def plan_shard(self, epoch: int, shard: int) -> tuple[ShardPlan, ShardIndex]:
        """The packed rows of a shard in an epoch, without places in the tar, and its index.

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
        return plan, index
