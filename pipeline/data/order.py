"""The order of rows: which row of the corpus stands at place ``m`` of the stream. Integers only, no state.

An epoch is one sequence of N rows: shards in a keyed order, the rows of a window of M consecutive shards in a keyed
order. It is cut into L equal intervals, the lanes, by rows; the stream takes the next row of every lane in turn.

Letters: R rows asked for, N rows an epoch, L lanes, M shards a window, D shards of the split, B windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import MAX_PERMUTATION, key, permutation

SHARDS: Final = 1
ROWS: Final = 2
DOCUMENTS: Final = 3
CUTS: Final = 4
"""Names of the keyed choices: order of shards, of rows, of documents over the slots, place of the cut."""

_LANE_BITS: Final = 20


def num_lanes(rows_per_step: int, open_shards: int) -> int:
    """Lanes of a source that gives ``rows_per_step`` rows a step: the largest divisor of it up to ``open_shards``.

    If that is under a quarter of what is allowed (a prime batch size), lanes need not divide the step.
    """
    most = min(open_shards, rows_per_step)
    divisor = next(lanes for lanes in range(most, 0, -1) if rows_per_step % lanes == 0)
    return divisor if 4 * divisor >= most else most


@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows of the stream stand, before any shard is looked at."""

    epoch: NDArray[np.int64]
    """Epoch of every row, (R,)."""

    lane: NDArray[np.int64]
    """Lane of every row, (R,)."""

    position: NDArray[np.int64]
    """Position u in the epoch's sequence, 0 .. N-1, (R,)."""


def places(ordinals: NDArray[np.int64], num_rows: int, lanes: int) -> Places:
    """``e, p = divmod(m, N); Q, x = divmod(N, L); t, l = divmod(p, L); u = l*Q + min(l, x) + t``.

    ``u`` is a bijection of 0 .. N-1: lanes 0 .. x-1 have Q+1 rows, the others Q.

    Args:
        ordinals: m, the numbers of the rows in their source, int64 (R,).
        num_rows: N, rows an epoch.
        lanes: L.
    """
    epoch, row = np.divmod(ordinals, num_rows)
    share, longer = divmod(num_rows, lanes)
    turn, lane = np.divmod(row, lanes)
    return Places(epoch=epoch, lane=lane, position=lane * share + np.minimum(lane, longer) + turn)


def slot_order(lane: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """Slots of a step: its rows by lane, scaled so that sources with other lane counts mix, ties by number, (R,)."""
    return np.argsort((lane << _LANE_BITS) // lanes, kind="stable")


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


@dataclass(frozen=True, eq=False)
class SourceOrder:
    """The order of one source (one split of one corpus)."""

    seed: int
    """Of the run."""

    source: int
    """Number of the source in the mixture; 0 while there is one."""

    rows_per_shard: NDArray[np.int64]
    """R_s, a fact of (corpus, sequence length, packing), (D,)."""

    lanes: int
    """L."""

    window_shards: int
    """M."""

    def epoch(self, epoch: int) -> EpochOrder:
        """Order of the shards and first rows of the windows of an epoch."""
        shards = permutation(key(self.seed, SHARDS, self.source, epoch), len(self.rows_per_shard))
        before = np.concatenate([[0], np.cumsum(self.rows_per_shard[shards])])  # (D+1,)
        return EpochOrder(shards=shards, first_row=before[: -1 : self.window_shards])

    def window_rows(self, epoch: int, window: int, num_rows: int) -> NDArray[np.int64]:
        """Keyed order of a window's rows: entry v is the packed row (counted over the window's shards) at place v."""
        return permutation(key(self.seed, ROWS, self.source, epoch, window), num_rows)


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
