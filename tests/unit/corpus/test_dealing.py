"""Splits and shards are functions of hashes and lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.corpus.dealing import (
    evenly_spread,
    in_validation,
    shard_numbers,
    unigram_entropy,
    with_both_splits,
)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
def test_the_share_of_the_validation_split(share: float) -> None:
    chosen = in_validation(keys(200_000), share).mean()
    assert abs(chosen - share) < 4 * math.sqrt(share * (1 - share) / 200_000) + 1e-12


def test_a_larger_share_keeps_the_documents_of_a_smaller_one() -> None:
    small, large = in_validation(keys(1000), 0.1), in_validation(keys(1000), 0.2)
    assert (large | ~small).all()
    assert large.sum() > small.sum()


def test_neither_split_is_empty_with_two_documents() -> None:
    for seed in range(50):
        for share in (1e-9, 0.5, 1 - 1e-9):
            chosen = with_both_splits(keys(2, seed), share)
            assert chosen.sum() == 1
    assert not with_both_splits(keys(2), 0.0).any()
    assert with_both_splits(keys(1), 1e-9).tolist() == [False]


def test_shards_keep_their_limits_and_are_about_equal() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        tokens = generator.integers(1, int(generator.integers(2, 500)), int(generator.integers(1, 400)))
        most_tokens, most_documents = int(generator.integers(1, 3000)), int(generator.integers(1, 60))
        numbers = shard_numbers(tokens, most_tokens, most_documents)
        assert numbers[0] == 0
        assert set(np.diff(numbers).tolist()) <= {0, 1}
        for shard in range(numbers[-1] + 1):
            inside = tokens[numbers == shard]
            assert inside[:-1].sum() <= most_tokens
            assert len(inside) <= most_documents + 1


def test_equal_documents_make_equal_shards() -> None:
    numbers = shard_numbers(np.full(1000, 10), 2600, 10**6)
    assert np.bincount(numbers).tolist() == [250, 250, 250, 250]


@pytest.mark.parametrize(("count", "most"), [(10, 3), (10, 10), (3, 10), (1000, 7), (0, 5)])
def test_evenly_spread(count: int, most: int) -> None:
    chosen = evenly_spread(count, most)
    assert len(chosen) == min(count, most)
    assert len(set(chosen.tolist())) == len(chosen)
    assert all(0 <= number < count for number in chosen)
    if len(chosen) > 1:
        assert np.ptp(np.diff(chosen)) <= 1


def test_unigram_entropy() -> None:
    assert unigram_entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))
    assert unigram_entropy(np.array([9, 0])) == 0
    assert unigram_entropy(np.zeros(3, np.int64)) == 0
    assert unigram_entropy(np.array([3, 1])) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
