"""What the order of rows costs and gives, by its pure functions: shards a node downloads, and how well rows are mixed.

Letters: N rows an epoch, G rows of a step, T steps, L lanes, D shards, W nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import SourceOrder, num_lanes, rank_slice, slot_order

NODES: Final = (1, 2, 4, 7, 8, 16, 32, 64, 100, 128, 256, 375, 512)
POOL_ROWS: Final = 2_000
"""The shuffle buffer of a reader that goes through one shard after the other."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """One epoch, slot by slot."""

    shard: NDArray[np.int32]
    """Shard of every slot, (T, G)."""

    place: NDArray[np.int64]
    """Place in the corpus, in rows, of every slot, (T, G)."""


def make_order(num_shards: int, rows_a_shard: int, lanes: int, window_shards: int) -> SourceOrder:
    """An order over shards of about so many rows (standard deviation 1.3 %, as 10,000 documents give)."""
    random = np.random.default_rng(0)
    rows = np.maximum(1, random.normal(rows_a_shard, 0.013 * rows_a_shard, num_shards)).astype(np.int64)
    return SourceOrder(seed=1, source=0, rows_per_shard=rows, lanes=lanes, window_shards=window_shards)


def default_shape(rows_a_step: int, open_shards: int) -> tuple[int, int]:
    """Lanes and shards a window, as the stream chooses them."""
    lanes = num_lanes(rows_a_step, open_shards)
    return lanes, max(1, open_shards // lanes)


def whole_epoch(order: SourceOrder, rows_a_step: int) -> Epoch:
    """Epoch 0 in whole steps."""
    steps = order.num_rows // rows_a_step
    places = order.places(np.arange(steps * rows_a_step))
    assert int(places.epoch.max(initial=0)) == 0
    shard_at, place_at = _sequence(order)
    position = places.position.reshape(steps, rows_a_step)
    # Row p is in lane p mod L, so the order of a step's slots depends on where in the lanes its first row falls.
    starts = places.lane.reshape(steps, rows_a_step)[:, 0]
    for start in np.unique(starts).tolist():
        alike = np.flatnonzero(starts == start)
        lane = places.lane.reshape(steps, rows_a_step)[alike[0]]
        position[alike] = position[alike][:, slot_order(lane, order.lanes)]
    return Epoch(shard_at[position], place_at[position])


def _sequence(order: SourceOrder) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Shard and place in the corpus of every position of epoch 0, (N,) each."""
    epoch = order.epoch(0)
    rows = order.rows_per_shard[epoch.shards]
    first = np.cumsum(order.rows_per_shard) - order.rows_per_shard  # (D,)
    packed = np.arange(order.num_rows) - np.repeat(np.cumsum(rows) - rows, rows)
    shard = np.repeat(epoch.shards, rows)
    place = first[shard] + packed
    ends = np.append(epoch.first_row[1:], order.num_rows)
    for window, (begin, end) in enumerate(zip(epoch.first_row.tolist(), ends.tolist(), strict=True)):
        row_at = begin + order.window_rows(0, window, end - begin)
        shard[begin:end], place[begin:end] = shard[row_at], place[row_at]
    return shard.astype(np.int32), place


def download_factor(epoch: Epoch, num_shards: int, nodes: int) -> float | None:
    """Shards that the nodes read, added up, over the shards there are; None where a node would have no row."""
    rows_a_step = epoch.shard.shape[1]
    if nodes > rows_a_step:
        return None
    read = 0
    for node in range(nodes):
        begin, end = rank_slice(rows_a_step, node, nodes)
        seen = np.zeros(num_shards, np.bool_)
        seen[epoch.shard[:, begin:end].ravel()] = True
        read += int(seen.sum())
    return read / num_shards


@dataclass(frozen=True)
class Quality:
    """How well the rows of a batch are mixed."""

    distinct_shards: float
    """Distinct shards in a batch, mean."""

    design_effects: tuple[float, float]
    """Variance of a batch's mean against independent rows, where rows of one shard correlate with 0.1 and with 0.3."""

    repeated_shards: float
    """Share of a batch's rows whose shard the batch before had too."""

    neighbour_distance: float
    """Median distance of neighbouring slots, as a share of the corpus; independent rows: 0.29."""


def quality(epoch: Epoch, num_rows: int, num_samples: int = 400) -> Quality:
    """Measured over steps spread over the epoch, each with the step after it."""
    steps = np.unique(np.linspace(0, len(epoch.shard) - 2, num_samples).astype(np.int64))
    distinct, squares, repeated, distances = [], [], [], []
    for step in steps.tolist():
        _, counts = np.unique(epoch.shard[step], return_counts=True)
        distinct.append(len(counts))
        squares.append(float((counts**2).sum()) / counts.sum())
        repeated.append(float(np.isin(epoch.shard[step + 1], epoch.shard[step]).mean()))
        distances.append(np.abs(np.diff(epoch.place[step])))
    # Kish's design effect of clusters: 1 + ICC * (rows that a row shares its shard with), averaged over rows.
    first, second = (1 + icc * (float(np.mean(squares)) - 1) for icc in (0.1, 0.3))
    return Quality(
        distinct_shards=float(np.mean(distinct)),
        design_effects=(first, second),
        repeated_shards=float(np.mean(repeated)),
        neighbour_distance=float(np.median(np.concatenate(distances))) / num_rows,
    )


def shard_after_shard(order: SourceOrder, rows_a_step: int, num_steps: int) -> Epoch:
    """What a reader of whole shards gives that shuffles through a pool: a random row of the pool goes out, the next one
    of the shard comes in."""
    random = np.random.default_rng(0)
    count = num_steps * rows_a_step
    shard = np.repeat(order.epoch(0).shards, order.rows_per_shard[order.epoch(0).shards])[: count + POOL_ROWS]
    pool = list(range(POOL_ROWS))
    taken = np.empty(count, np.int64)
    for number, at in enumerate(random.integers(0, POOL_ROWS, count).tolist()):
        taken[number], pool[at] = pool[at], POOL_ROWS + number
    first = np.cumsum(order.rows_per_shard) - order.rows_per_shard
    found = shard[taken].reshape(num_steps, rows_a_step)
    before = np.cumsum(order.rows_per_shard[order.epoch(0).shards]) - order.rows_per_shard[order.epoch(0).shards]
    at = np.searchsorted(before, taken, side="right") - 1
    return Epoch(found.astype(np.int32), first[found] + (taken - before[at]).reshape(found.shape))


def independent(num_shards: int, rows_a_shard: int, rows_a_step: int, num_steps: int) -> Epoch:
    """Rows drawn independently from the whole corpus."""
    place = np.random.default_rng(0).integers(0, num_shards * rows_a_shard, (num_steps, rows_a_step))
    return Epoch((place // rows_a_shard).astype(np.int32), place)
