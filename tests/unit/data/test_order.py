"""Order of rows: bijections, lanes, windows, slices, against a slow reading of the definitions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.base.keyed import key, permutation
from pipeline.data.order import (
    ROWS,
    SHARDS,
    SourceOrder,
    check_window,
    in_lanes,
    num_lanes,
    rank_slice,
    slot_order,
)


def one_epoch_order(num_rows: int, lanes: int) -> SourceOrder:
    return SourceOrder(seed=0, source=0, rows_per_shard=np.array([num_rows]), lanes=lanes, window_shards=1)


def test_position_is_a_bijection_of_every_epoch() -> None:
    for num_rows, lanes in itertools.product(range(1, 200), range(1, 41)):
        order = one_epoch_order(num_rows, lanes)
        found = order.places(np.arange(2 * num_rows))
        for epoch in (0, 1):
            here = np.flatnonzero(found.epoch == epoch)
            np.testing.assert_array_equal(np.sort(found.position[here]), np.arange(num_rows))
            np.testing.assert_array_equal(order.ordinal_of(epoch, found.position[here]), here)


def test_lanes_are_equal_intervals_read_in_order() -> None:
    for num_rows, lanes in ((100, 7), (5, 8), (64, 64), (1000, 1)):
        lane, position = in_lanes(np.arange(num_rows), num_rows, lanes)
        of_lanes = [position[lane == number] for number in range(lanes)]
        np.testing.assert_array_equal(np.concatenate(of_lanes), np.arange(num_rows))
        sizes = [len(positions) for positions in of_lanes]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)


def slow_rest(order: SourceOrder, ordinal: int) -> tuple[int, list[int]]:
    """Epoch that runs after so many rows, and its shards in windows of which no row has been read."""
    read = order.places(np.arange(ordinal))
    epoch = int(order.places(np.array([ordinal])).epoch[0])
    found = order.epoch(epoch)
    window_of = np.searchsorted(found.first_row, read.position[read.epoch == epoch], side="right") - 1
    windows = set(range(len(found.first_row))) - set(window_of.tolist())
    shards = found.shards.tolist()
    size = order.window_shards
    return epoch, [shard for window in sorted(windows) for shard in shards[window * size : (window + 1) * size]]


@pytest.mark.parametrize(("num_shards", "lanes", "window_shards"), [(1, 4, 1), (9, 2, 1), (40, 3, 1), (23, 2, 4)])
def test_a_new_phase_goes_on_with_the_shards_that_no_lane_has_touched(
    num_shards: int, lanes: int, window_shards: int
) -> None:
    counts = np.random.default_rng(num_shards).integers(1, 9, num_shards)
    orders = [SourceOrder(1, 0, counts, lanes, window_shards)]
    orders.append(replace(orders[0], first_epoch=2, opening=orders[0].epoch(2).shards[::2].copy()))
    for order in orders:
        for ordinal in range(order.opening_rows + 2 * order.num_rows):
            epoch, opening = order.rest_after(ordinal)
            slow_epoch, slow_opening = slow_rest(order, ordinal)
            if not slow_opening:
                assert (epoch, opening) == (slow_epoch + 1, None)
            else:
                shards = order.epoch(epoch).shards if opening is None else opening
                assert (epoch, shards.tolist()) == (slow_epoch, slow_opening)


def test_an_opening_epoch_is_read_first_and_then_whole_ones() -> None:
    counts = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    order = SourceOrder(5, 0, counts, lanes=3, window_shards=2, first_epoch=4, opening=np.array([6, 2, 0]))
    opening_rows = int(counts[[6, 2, 0]].sum())
    found = order.places(np.arange(opening_rows + 2 * counts.sum()))
    assert [(found.epoch == epoch).sum() for epoch in (4, 5, 6)] == [opening_rows, counts.sum(), counts.sum()]
    for epoch in (4, 5, 6):
        here = np.flatnonzero(found.epoch == epoch)
        np.testing.assert_array_equal(np.sort(found.position[here]), np.arange(len(here)))
        np.testing.assert_array_equal(order.ordinal_of(epoch, found.position[here]), here)
    assert order.epoch(4).shards.tolist() == [6, 2, 0]
    assert order.rows_of_epochs(5) == opening_rows
    assert order.rows_of_epochs(6) == opening_rows + counts.sum()
    assert order.rows_of_epochs(3) == 0
    assert order.epochs_at(opening_rows) == 5
    assert order.epochs_at(opening_rows + int(counts.sum())) == 6


@pytest.mark.parametrize(
    ("rows_per_step", "open_shards", "lanes"),
    [
        (256, 256, 256),
        (32, 256, 32),
        (3000, 256, 250),
        (4096, 256, 256),
        (1, 256, 1),
        (257, 256, 256),
        (12, 8, 6),
        (6, 1, 1),
    ],
)
def test_num_lanes(rows_per_step: int, open_shards: int, lanes: int) -> None:
    assert num_lanes(rows_per_step, open_shards) == lanes


def test_num_lanes_divides_the_step_unless_that_leaves_under_a_quarter() -> None:
    for rows_per_step, open_shards in itertools.product(range(1, 130), range(1, 70)):
        lanes, most = num_lanes(rows_per_step, open_shards), min(rows_per_step, open_shards)
        divisors = [one for one in range(1, most + 1) if rows_per_step % one == 0]
        assert lanes == (divisors[-1] if divisors[-1] >= most / 4 else most)


def test_a_source_with_a_fraction_of_the_step_has_as_many_lanes_as_whole_rows() -> None:
    assert num_lanes(12.5, 256) == 12
    assert num_lanes(0.3, 256) == 1
    assert num_lanes(12.5, 5) == 5


def test_slots_are_rows_by_lane_then_number() -> None:
    lane = np.array([3, 0, 2, 1, 0, 3])
    assert slot_order(lane, 4).tolist() == [1, 4, 3, 2, 0, 5]
    # Sources with 4 and 2 lanes: lane 1 of 2 stands where lane 2 of 4 does.
    assert slot_order(lane, np.array([4, 4, 4, 2, 2, 4])).tolist() == [1, 4, 2, 3, 0, 5]


def test_rank_slices_join_without_gap_and_differ_by_one() -> None:
    for rows, world_size in itertools.product(range(1, 40), range(1, 40)):
        if world_size > rows:
            continue
        slices = [rank_slice(rows, rank, world_size) for rank in range(world_size)]
        assert [number for begin, end in slices for number in range(begin, end)] == list(range(rows))
        sizes = {end - begin for begin, end in slices}
        assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_rows_are_refused() -> None:
    with pytest.raises(UserError, match=r"4096 ranks share 256 rows a step .*at most 256 ranks or raise"):
        rank_slice(256, 0, 4096)
    with pytest.raises(ValueError, match="rank 4 of 4"):
        rank_slice(256, 4, 4)


def slow_windows(order: SourceOrder, epoch: int) -> list[list[int]]:
    """The shards of every window, straight from the definition."""
    shards = permutation(key(order.seed, SHARDS, order.source, epoch), len(order.rows_per_shard)).tolist()
    return [shards[first : first + order.window_shards] for first in range(0, len(shards), order.window_shards)]


@pytest.mark.parametrize("window_shards", [1, 2, 3, 50])
@pytest.mark.parametrize("num_shards", [1, 2, 7, 50])
def test_epoch_order_is_windows_of_the_keyed_shards(num_shards: int, window_shards: int) -> None:
    counts = np.random.default_rng(num_shards).integers(0, 6, num_shards)
    order = SourceOrder(seed=3, source=1, rows_per_shard=counts, lanes=4, window_shards=window_shards)
    for epoch in range(3):
        found = order.epoch(epoch)
        windows = slow_windows(order, epoch)
        assert found.shards.tolist() == [shard for window in windows for shard in window]
        rows = [int(counts[window].sum()) for window in windows]
        assert found.first_row.tolist() == [sum(rows[:number]) for number in range(len(rows))]


def test_orders_differ_by_seed_source_epoch_and_window() -> None:
    counts = np.full(40, 5)
    orders = [SourceOrder(seed, source, counts, 4, 2) for seed in (0, 1) for source in (0, 1)]
    shards = {tuple(order.epoch(epoch).shards.tolist()) for order in orders for epoch in (0, 1)}
    assert len(shards) == 8
    rows = {tuple(order.window_rows(e, w, 20).tolist()) for order in orders for e in (0, 1) for w in (0, 1)}
    assert len(rows) == 16
    assert orders[0].window_rows(1, 2, 9).tolist() == permutation(key(0, ROWS, 0, 1, 2), 9).tolist()


def test_a_window_that_cannot_be_shuffled_is_refused() -> None:
    check_window(np.array([1 << 23, 1 << 23, 5]), 2, 8)
    with pytest.raises(
        UserError, match=r"window of 2 shards can hold 16777217 rows; .*Lower data\.open_shards \(now 8\)"
    ):
        check_window(np.array([(1 << 23) + 1, 5, 1 << 23]), 2, 8)
