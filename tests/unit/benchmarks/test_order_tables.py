"""Download factors and shuffle quality against slow references and hand-made epochs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.order_tables import (
    Epoch,
    default_shape,
    download_factor,
    independent,
    make_order,
    quality,
    shard_after_shard,
    whole_epoch,
)
from pipeline.data.order import rank_slice, slot_order

SHAPES = [(8, 1, 16), (16, 1, 16), (5, 3, 12), (4, 2, 10), (1, 4, 8)]


@pytest.mark.parametrize(("lanes", "window", "batch"), SHAPES)
def test_an_epoch_has_every_row_once_in_slot_order(lanes: int, window: int, batch: int) -> None:
    order = make_order(24, 37, lanes, window)
    epoch = whole_epoch(order, batch)
    assert len(np.unique(epoch.place)) == epoch.place.size == order.num_rows // batch * batch
    first = np.cumsum(order.rows_per_shard) - order.rows_per_shard
    assert np.array_equal(epoch.shard, np.searchsorted(first, epoch.place, side="right") - 1)
    step = 3
    slow = order.places(np.arange(step * batch, (step + 1) * batch))
    in_slots = slow.position[slot_order(slow.lane, lanes)]
    first_row = order.epoch(0).first_row
    windows = np.searchsorted(first_row, in_slots, side="right") - 1
    shards = [set(order.epoch(0).shards[number * window : (number + 1) * window].tolist()) for number in windows]
    assert all(shard in allowed for shard, allowed in zip(epoch.shard[step].tolist(), shards, strict=True))


@pytest.mark.parametrize(("lanes", "window", "batch"), SHAPES)
@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_the_download_factor_counts_shards_node_by_node(lanes: int, window: int, batch: int, nodes: int) -> None:
    epoch = whole_epoch(make_order(24, 37, lanes, window), batch)
    read: set[tuple[int, int]] = set()
    for step in epoch.shard:
        for node in range(nodes):
            begin, end = rank_slice(batch, node, nodes)
            read |= {(node, shard) for shard in step[begin:end].tolist()}
    assert download_factor(epoch, 24, nodes) == len(read) / 24


def test_a_node_without_rows_has_no_factor() -> None:
    assert download_factor(whole_epoch(make_order(24, 37, 8, 1), 8), 24, 9) is None


def test_quality_of_the_best_and_the_worst_batch() -> None:
    place = np.arange(8 * 4).reshape(8, 4)
    one_shard = quality(Epoch(np.repeat(np.arange(8, dtype=np.int32), 4).reshape(8, 4), place), 32)
    assert one_shard.distinct_shards == 1
    assert one_shard.design_effects == pytest.approx((1.3, 1.9))  # 1 + ICC * 3
    assert one_shard.repeated_shards == 0
    assert one_shard.neighbour_distance == 1 / 32
    all_shards = quality(Epoch(np.tile(np.arange(4, dtype=np.int32), (8, 1)), place), 32)
    assert (all_shards.distinct_shards, all_shards.repeated_shards) == (4, 1)
    assert all_shards.design_effects == (1, 1)


def test_other_ways_to_read() -> None:
    order = make_order(10, 4000, 1, 1)
    pool = shard_after_shard(order, 16, 100)
    assert len(np.unique(pool.place)) == pool.place.size
    first = np.cumsum(order.rows_per_shard) - order.rows_per_shard
    assert np.array_equal(pool.shard, np.searchsorted(first, pool.place, side="right") - 1)
    assert quality(pool, order.num_rows).distinct_shards <= 2
    drawn = quality(independent(1000, 100, 64, 200), 100_000)
    assert drawn.neighbour_distance == pytest.approx(1 - 0.5**0.5, abs=0.02)


def test_the_default_shape_is_the_streams() -> None:
    assert default_shape(256, 256) == (256, 1)
    assert default_shape(32, 256) == (32, 8)
    assert default_shape(3000, 256) == (250, 1)
