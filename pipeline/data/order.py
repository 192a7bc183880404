"""The order of rows: which row of the corpus stands at place ``m`` of the stream. Integers only, no state.

An epoch is one sequence of N rows: shards in a keyed order, the rows of a window of M consecutive shards in a keyed
order. It is cut into L equal intervals, the lanes, by rows; the stream takes the next row of every lane in turn.

Letters: R rows asked for, G rows of a step, N rows an epoch, L lanes, M shards a window, D shards of the split, B
windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import MAX_PERMUTATION, key, permutation
from pipeline.base.keyed_kernels import permutation_of

SHARDS: Final = 1
ROWS: Final = 2
DOCUMENTS: Final = 3
CUTS: Final = 4
"""Names of the keyed choices: order of shards, of rows, of documents over the slots, place of the cut."""

_LANE_BITS: Final = 20


def num_lanes(rows_per_step: float, open_shards: int) -> int:
    """Lanes of a source that gives ``rows_per_step`` rows a step: the largest divisor of it up to ``open_shards``.

    If that is under a quarter of what is allowed (a prime batch size), or a mixture gives the source no whole number of
    rows a step, lanes need not divide the step.
    """
    most = max(1, min(open_shards, int(rows_per_step)))
    if rows_per_step != int(rows_per_step):
        return most
    divisor = next(lanes for lanes in range(most, 0, -1) if int(rows_per_step) % lanes == 0)
    return divisor if 4 * divisor >= most else most


@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows of a source stand, before any shard is looked at."""

    epoch: NDArray[np.int64]
    """Epoch of every row, (R,)."""

    lane: NDArray[np.int64]
    """Lane of every row, (R,)."""

    position: NDArray[np.int64]
    """Position u in the epoch's sequence, 0 .. N-1, (R,)."""


def in_lanes(row: NDArray[np.int64], num_rows: int, lanes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lane and position of rows of an epoch: ``Q, x = divmod(N, L); t, l = divmod(p, L); u = l*Q + min(l, x) + t``.

    ``u`` is a bijection of 0 .. N-1: lanes 0 .. x-1 have Q+1 rows, the others Q.

    Args:
        row: p, int64 (R,).
        num_rows: N.
        lanes: L.
    """
    share, longer = divmod(num_rows, lanes)
    turn, lane = np.divmod(row, lanes)
    return lane, lane * share + np.minimum(lane, longer) + turn


def row_at(position: NDArray[np.int64], num_rows: int, lanes: int) -> NDArray[np.int64]:
    """Rows p of an epoch by position u, (R,): the inverse of :func:`in_lanes`."""
    share, longer = divmod(num_rows, lanes)
    in_longer = position < longer * (share + 1)
    after = position - longer * (share + 1)
    lane = np.where(in_longer, position // (share + 1), longer + after // max(share, 1))
    turn = np.where(in_longer, position % (share + 1), after % max(share, 1))
    return turn * lanes + lane


def slot_order(lane: NDArray[np.int64], lanes: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Slots of a step: its rows by lane, scaled so that sources with other lane counts mix, ties by number, (..., G).

    Args:
        lane: of every row in its source, (..., G): of one step or of several.
        lanes: L of every row's source, as ``lane`` or one number.
    """
    return np.argsort((lane << _LANE_BITS) // lanes, axis=-1, kind="stable")


def rank_slice(rows_per_step: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and end slot of a rank: ``[G*r div W, G*(r+1) div W)``.

    Raises:
        UserError: more ranks than rows, so that a rank would have none.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    if world_size > rows_per_step:
        raise UserError(
            f"{world_size} ranks share {rows_per_step} rows a step (train.global_batch_size): ranks would have none. "
            f"Start at most {rows_per_step} ranks or raise train.global_batch_size."
        )
    return rows_per_step * rank // world_size, rows_per_step * (rank + 1) // world_size


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One epoch's sequence of shards."""

    shards: NDArray[np.int64]
    """Shards in the epoch's order, (D,)."""

    first_row: NDArray[np.int64]
    """Rows before every window, (B,)."""

    num_rows: int
    """N of this epoch."""


@dataclass(frozen=True, eq=False)
class SourceOrder:
    """The order of one source (one split of one corpus) over one phase (stages of one sequence length)."""

    seed: int
    """Of the run."""

    source: int
    """Number of the source in the mixture."""

    rows_per_shard: NDArray[np.int64]
    """R_s, a fact of (corpus, sequence length, packing), (D,)."""

    lanes: int
    """L."""

    window_shards: int
    """M."""

    first_epoch: int = 0
    """Epoch in which the phase begins."""

    opening: NDArray[np.int64] | None = None
    """Shards of the first epoch, in its order, where an earlier phase has read the others; None: all."""

    @cached_property
    def num_rows(self) -> int:
        """Rows of a full epoch, N."""
        return int(self.rows_per_shard.sum())

    @cached_property
    def opening_rows(self) -> int:
        """Rows of an epoch that the phase begins in the middle of; 0 where it begins with a full one."""
        return 0 if self.opening is None else int(self.rows_per_shard[self.opening].sum())

    @property
    def open_shards(self) -> int:
        """Shards that the lanes are in at once, at most."""
        return min(len(self.rows_per_shard), self.lanes * self.window_shards)

    @property
    def _first_full_epoch(self) -> int:
        return self.first_epoch + (self.opening is not None)

    def places(self, ordinals: NDArray[np.int64]) -> Places:
        """Epoch, lane and position of rows m of the source in this phase, int64 (R,)."""
        epoch, row = np.divmod(ordinals - self.opening_rows, self.num_rows)
        lane, position = in_lanes(row, self.num_rows, self.lanes)
        epoch += self._first_full_epoch
        early = ordinals < self.opening_rows
        if early.any():
            epoch[early] = self.first_epoch
            lane[early], position[early] = in_lanes(ordinals[early], self.opening_rows, self.lanes)
        return Places(epoch, lane, position)

    def ordinal_of(self, epoch: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows m by position in an epoch, (R,): the inverse of :meth:`places`."""
        if self.opening is not None and epoch == self.first_epoch:
            return row_at(position, self.opening_rows, self.lanes)
        before = self.opening_rows + (epoch - self._first_full_epoch) * self.num_rows
        return before + row_at(position, self.num_rows, self.lanes)

    def epochs_at(self, ordinal: int) -> float:
        """Epochs of the source, counted from the run's start, after ``ordinal`` rows of the phase; of an epoch that an
        earlier phase began, the share of its rows under this phase's sequence length."""
        if ordinal < self.opening_rows:
            return self.first_epoch + 1 - (self.opening_rows - ordinal) / self.num_rows
        return self._first_full_epoch + (ordinal - self.opening_rows) / self.num_rows

    def rows_of_epochs(self, epochs: int) -> int:
        """Rows of the phase until ``epochs`` epochs of the source, counted from the run's start, have been read."""
        return max(0, self.opening_rows + (epochs - self._first_full_epoch) * self.num_rows)

    def epoch(self, epoch: int) -> EpochOrder:
        """Order of the shards and first rows of the windows of an epoch."""
        if self.opening is not None and epoch == self.first_epoch:
            shards = self.opening
        else:
            shards = permutation(key(self.seed, SHARDS, self.source, epoch), len(self.rows_per_shard))
        before = np.concatenate([[0], np.cumsum(self.rows_per_shard[shards])])  # (D+1,)
        return EpochOrder(shards, before[: -1 : self.window_shards], int(before[-1]))

    def window_rows(self, epoch: int, window: int, num_rows: int) -> NDArray[np.int64]:
        """Keyed order of a window's rows: entry v is the packed row (counted over the window's shards) at place v."""
        return permutation_of(np.uint64(key(self.seed, ROWS, self.source, epoch, window)), num_rows)

    def rest_after(self, ordinal: int) -> tuple[int, NDArray[np.int64] | None]:
        """Where a following phase goes on when ``ordinal`` rows of this one have been read: with the shards of the
        running epoch that no lane has touched, so that no token comes twice.

        Returns:
            ``first_epoch`` and ``opening`` of the following phase.
        """
        place = self.places(np.array([ordinal]))
        epoch = int(place.epoch[0])
        order = self.epoch(epoch)
        row = int(self._row_in_epoch(ordinal))
        if row == 0:
            whole = self.opening is None or epoch > self.first_epoch
            return epoch, None if whole else self.opening
        lane = np.arange(min(self.lanes, row))
        _, begin = in_lanes(lane, order.num_rows, self.lanes)
        end = begin + (row - lane + self.lanes - 1) // self.lanes  # after the last row read of every lane
        first = np.searchsorted(order.first_row, begin, side="right") - 1
        last = np.searchsorted(order.first_row, end - 1, side="right") - 1
        change = np.zeros(len(order.first_row) + 1, np.int64)
        np.add.at(change, first, 1)
        np.add.at(change, last + 1, -1)
        touched = np.repeat(np.cumsum(change[:-1]) > 0, self.window_shards)[: len(order.shards)]
        rest = order.shards[~touched]
        return (epoch, rest) if len(rest) else (epoch + 1, None)

    def _row_in_epoch(self, ordinal: int) -> int:
        if ordinal < self.opening_rows:
            return ordinal
        return (ordinal - self.opening_rows) % self.num_rows


def check_window(rows_per_shard: NDArray[np.int64], window_shards: int, open_shards: int) -> None:
    """Refuse windows that could outgrow the 24-bit keys of a permutation.

    Raises:
        UserError: the largest possible window has more rows than a permutation can order.
    """
    largest = int(np.sort(rows_per_shard)[-window_shards:].sum())
    if largest > MAX_PERMUTATION:
        raise UserError(
            f"A window of {window_shards} shards can hold {largest} rows; at most {MAX_PERMUTATION} can be shuffled. "
            f"Lower data.open_shards (now {open_shards}), or build the corpus with smaller shards."
        )
