"""The integer hash: known values, scalar and array agree, permutations are permutations and look random."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.base.keyed import MAX_PERMUTATION, hashes, key, mix, mix_array, permutation, sorted_by_group

_GOLDEN = 0x9E3779B97F4A7C15


def test_mix_is_splitmix64() -> None:
    # The first outputs of splitmix64 with seed 0, as published with the generator's reference code.
    assert [mix(_GOLDEN * turn) for turn in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_array_and_scalar_agree() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 63, 1000, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    assert mix_array(values).tolist() == [mix(value) for value in values.tolist()]
    base = key(3, 1, 4)
    indices = np.array([0, 1, 5, 1 << 40])
    assert hashes(base, indices).tolist() == [mix(base + index * _GOLDEN) for index in indices.tolist()]


def test_hashes_leave_their_input_alone() -> None:
    indices = np.arange(10, dtype=np.uint64)
    hashes(7, indices)
    np.testing.assert_array_equal(indices, np.arange(10))


def test_key_depends_on_every_part_and_their_order() -> None:
    keys = [key(), key(0), key(0, 0), key(1), key(1, 2), key(2, 1), key(1, 2, 0), key(-1), key(1 << 63)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= one < 1 << 64 for one in keys)
    assert key(-1) == key((1 << 64) - 1)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 1000, 100_000])
def test_permutation_holds_every_index_once_and_is_reproducible(n: int) -> None:
    found = permutation(key(5, n), n)
    np.testing.assert_array_equal(np.sort(found), np.arange(n))
    np.testing.assert_array_equal(found, permutation(key(5, n), n))


def test_permutation_is_pinned() -> None:
    # A change of these numbers changes every stream of every run.
    assert permutation(key(0, 1), 10).tolist() == [5, 2, 8, 6, 9, 1, 7, 4, 0, 3]


def test_permutations_are_uniform_over_keys() -> None:
    n, num_keys = 8, 20_000
    places = np.zeros((n, n))
    for number in range(num_keys):
        places[np.arange(n), permutation(key(number), n)] += 1
    expected = num_keys / n
    chi_squared = ((places - expected) ** 2 / expected).sum()
    degrees = (n - 1) ** 2
    assert abs(chi_squared - degrees) < 5 * np.sqrt(2 * degrees)


def test_too_long_a_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="a permutation of 16777217 items was asked for; at most 16777216"):
        permutation(0, MAX_PERMUTATION + 1)


def test_sorted_by_group_is_a_keyed_permutation_within_every_group() -> None:
    groups = np.random.default_rng(0).integers(0, 5, 200)
    found = sorted_by_group(key(1), groups)
    assert sorted(found.tolist()) == list(range(200))
    assert (np.diff(groups[found]) >= 0).all()
    assert found.tolist() != sorted_by_group(key(2), groups).tolist()


def test_sorted_by_group_gives_every_order_of_a_group_equally_often() -> None:
    groups = np.array([7, 65_535, 7, 7])
    found = Counter(tuple(sorted_by_group(key(3, seed), groups).tolist()) for seed in range(6000))
    assert all(order[3] == 1 for order in found)
    assert len(found) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in found.values()) < 20.5  # chi-squared, 5 df, p = 0.001


def test_sorted_by_group_refuses_more_than_its_index_bits() -> None:
    with pytest.raises(ValueError, match="16777217 items were to be ordered; at most 16777216"):
        sorted_by_group(key(1), np.broadcast_to(np.uint8(0), MAX_PERMUTATION + 1))
