"""Mixtures: every source in its own order, shares right at any moment, inverses, ends."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.mixture import PERIOD, Mixture, quotas


def random_mixtures(num: int) -> list[tuple[list[float], list[int | None]]]:
    generator = np.random.default_rng(0)
    made = []
    for _ in range(num):
        shares = (generator.random(int(generator.integers(1, 8))) + 1e-3).tolist()
        limits = [None if generator.random() < 0.5 else int(generator.integers(0, 3000)) for _ in shares]
        made.append((shares, limits))
    return made


@pytest.mark.parametrize("number", range(60))
def test_every_source_is_read_in_order_and_rows_are_found_again(number: int) -> None:
    shares, limits = random_mixtures(60)[number]
    mixture = Mixture(shares, limits)
    num_rows = 3 * PERIOD if mixture.num_rows is None else mixture.num_rows
    rows = np.arange(num_rows)
    source, ordinal = mixture.of_rows(rows)
    for one, limit in enumerate(limits):
        own = source == one
        np.testing.assert_array_equal(ordinal[own], np.arange(own.sum()))
        np.testing.assert_array_equal(mixture.row_of(one, ordinal[own]), rows[own])
        if limit is not None:
            assert own.sum() <= limit
            if mixture.num_rows is not None:
                assert own.sum() == limit  # it ends when it has given all
                assert mixture.row_of(one, np.array([limit])).tolist() == [-1]
    for row in np.random.default_rng(1).integers(0, num_rows, 5) if num_rows else ():
        assert mixture.given_before(int(row)).tolist() == [
            int((source[:row] == one).sum()) for one in range(len(shares))
        ]


@pytest.mark.parametrize("num_sources", [2, 3, 5, 12, 40])
def test_any_stretch_of_rows_is_within_two_rows_of_the_shares(num_sources: int) -> None:
    shares = np.random.default_rng(num_sources).random(num_sources) + 0.01
    shares /= shares.sum()
    source, _ = Mixture(shares.tolist(), [None] * num_sources).of_rows(np.arange(PERIOD))
    for one in range(num_sources):
        given = np.concatenate([[0], np.cumsum(source == one)])
        off = given - np.arange(PERIOD + 1) * quotas(shares.tolist())[one] / PERIOD
        # A stretch is the difference of two prefixes.
        assert off.max() - off.min() <= 3.0
        assert np.abs(off).max() <= 2.0


def test_quotas_fill_the_period_and_leave_no_source_out() -> None:
    for shares in ([1.0], [1, 1, 1], [1e-9, 1.0], [0.7, 0.2, 0.1], [1e-9] * 50 + [1.0]):
        places = quotas(shares)
        assert places.sum() == PERIOD
        assert (places >= 1).all()
    assert quotas([0.5, 0.25, 0.25]).tolist() == [PERIOD // 2, PERIOD // 4, PERIOD // 4]
    assert quotas([1.0, 0.0]).tolist() == [PERIOD, 0]


def test_when_a_source_drops_out_the_others_share_its_place() -> None:
    mixture = Mixture([0.5, 0.25, 0.25], [1000, None, None])
    source, _ = mixture.of_rows(np.arange(2 * PERIOD))
    last = int(np.flatnonzero(source == 0)[-1])
    assert 1998 <= last <= 2002
    after = source[last + 1 :]
    assert abs((after == 1).mean() - 0.5) < 1e-3


def test_a_mixture_of_sources_that_all_end_has_an_end() -> None:
    assert Mixture([1.0], [7]).num_rows == 7
    assert Mixture([0.5, 0.5], [7, 30]).num_rows == 37
    assert Mixture([0.5, 0.5], [0, 30]).num_rows == 30
    assert Mixture([0.5, 0.5], [7, None]).num_rows is None


def test_a_tiny_source_that_was_given_a_place_takes_no_remainder() -> None:
    assert quotas([32767.6, 32767.5, 0.9]).tolist() == [32768, 32767, 1]
    assert quotas([1.0, 1.0, 1.0]).tolist() == [21846, 21845, 21845]
