"""Sentence pairs of a million tokens, against what they promise. Seeds are fixed: nothing here can flake.

Letters: C chunks, S seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.data import pairs
from pipeline.data.pieces import SECOND_PART, ShardLengths, has_flag
from pipeline.data.rows import RowFormat

CAP = 125
FORM = RowFormat(CAP + 3, (2,), (3,), 0, end_only_at_document_end=False, middle_ids=(3,))
NUM_SEEDS = 8


def shard_of(num_documents: int, sentences_each: int, longest: int = 40) -> ShardLengths:
    generator = np.random.default_rng(4)
    sentences = generator.integers(1, longest, num_documents * sentences_each).astype(np.uint32)
    first = np.arange(num_documents + 1) * sentences_each
    return ShardLengths(np.add.reduceat(sentences, first[:-1]).astype(np.uint32), sentences, first)


MANY = shard_of(2600, 20)  # 1.04 million tokens
ONE = shard_of(1, 52_000)


def assert_binomial(hits: int, number: int, share: float) -> None:
    assert abs(hits - share * number) < 5 * math.sqrt(number * share * (1 - share)), (hits, number)


def assert_neighbours_are_independent(hit: NDArray[np.bool_]) -> None:
    """Chi-square of a choice and the next one, both of one half."""
    found = np.bincount(2 * hit[1:] + hit[:-1], minlength=4)
    assert ((found - found.sum() / 4) ** 2).sum() / (found.sum() / 4) < 3 + 5 * math.sqrt(6)


def parts(shard: ShardLengths, seed: int, mode: pairs.PairMode) -> tuple[NDArray[Any], NDArray[Any]]:
    """First and second parts of all segments of two, in the order of the rows."""
    pieces = pairs.plan(shard, FORM, key(seed, 1), key(seed, 2), mode).pieces
    second = np.flatnonzero(has_flag(pieces, SECOND_PART))
    assert pieces["length"].sum() == shard.documents.sum() > 10**6
    return pieces[second - 1], pieces[second]


def follows(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the second part is the true next of the first."""
    return (one["document"] == other["document"]) & (one["offset"] + one["length"] == other["offset"])


def test_every_second_part_is_the_true_next_or_of_another_document() -> None:
    shares = []
    for seed in range(NUM_SEEDS):
        first, second = parts(MANY, seed, "nsp")
        is_next = follows(first, second)
        assert (first["document"] != second["document"])[~is_next].all()
        shares.append(1 - is_next.mean())
    # One coin for two or three; 3 % have no partner.
    spread = 5 * math.sqrt(0.25 * 2.1 / (NUM_SEEDS * len(first)))
    assert 0.485 - spread < np.mean(shares) < 0.5 + spread


def test_exchanges_are_tossed_for_evenly_and_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a partner of another document exchanges with it or not, together with it, by a coin of their own."""
    chunks = pairs.make_chunks(MANY, CAP, True)
    heads = []
    for seed in range(NUM_SEEDS):
        base = key(seed, 9)
        second = chunks.length - pairs.first_parts(chunks, key(base, 1))
        with monkeypatch.context() as patch:
            coins = key(base, pairs._COINS)
            patch.setattr(pairs, "hashes", lambda k, n, c=coins: hashes(k, n) | np.uint64((k == c) << 63))
            possible = pairs.exchange(second, chunks.document, base)
        taken_from = pairs.exchange(second, chunks.document, base)
        number = np.arange(len(second))
        has_partner, moved = possible != number, taken_from != number
        assert has_partner.mean() > 0.97
        np.testing.assert_array_equal(taken_from[moved], possible[moved])
        np.testing.assert_array_equal(moved, moved[possible])  # all of a cycle or none
        leader = has_partner & (number < possible) & (number < possible[possible])
        leader |= has_partner & (possible[possible] == number) & (number < possible)
        heads.append(moved[leader])
        assert_neighbours_are_independent(heads[-1])
    tossed = np.concatenate(heads)
    assert len(tossed) > NUM_SEEDS * 0.4 * len(chunks.length)
    assert_binomial(int(tossed.sum()), len(tossed), 0.5)


def test_one_document_has_true_next_parts_only() -> None:
    """There is nothing to exchange with; its own later sentences are never taken for those of another."""
    for seed in range(2):
        assert follows(*parts(ONE, seed, "nsp")).all()


@pytest.mark.parametrize("shard", [MANY, ONE], ids=["many documents", "one document"])
def test_half_of_the_pairs_are_swapped(shard: ShardLengths) -> None:
    number, swapped_in_all = 0, 0
    for seed in range(NUM_SEEDS):
        first, second = parts(shard, seed, "sop")
        in_order, swapped = follows(first, second), follows(second, first)
        assert (in_order ^ swapped).all()
        order = np.lexsort((np.minimum(first["offset"], second["offset"]), first["document"]))
        assert_neighbours_are_independent(swapped[order])
        assert_neighbours_are_independent(swapped)
        number, swapped_in_all = number + len(swapped), swapped_in_all + int(swapped.sum())
    assert_binomial(swapped_in_all, number, 0.5)


def test_every_chunk_is_swapped_under_half_of_the_keys() -> None:
    num_keys, counts = 64, np.zeros(0, np.int64)
    for seed in range(num_keys):
        first, second = parts(MANY, seed, "sop")
        place = np.minimum(first["offset"], second["offset"])
        order = np.lexsort((place, first["document"]))
        swapped = follows(second, first)[order]
        counts = swapped.astype(np.int64) if not len(counts) else counts + swapped
    statistic = ((counts - num_keys / 2) ** 2 / (num_keys / 4)).sum()
    assert abs(statistic - len(counts)) < 5 * math.sqrt(2 * len(counts))


def test_a_tenth_of_the_chunks_is_short() -> None:
    """Of sentences of one token, so that every length is met exactly; the last chunk has what is left."""
    ones = np.ones(10**6, np.uint32)
    chunks = pairs.make_chunks(ShardLengths(ones.sum(keepdims=True), ones, np.array([0, 10**6])), CAP, True)
    length = chunks.length[:-1]
    drawn = np.bincount(length, minlength=CAP + 1)
    expected = np.zeros(CAP + 1)
    expected[2:] = len(length) * pairs.SHORT_SHARE / (CAP - 1)  # evenly from 2 to the cap,
    expected[CAP] += len(length) * (1 - pairs.SHORT_SHARE)  # and those that are not short
    assert not drawn[:2].any()
    statistic = ((drawn[2:] - expected[2:]) ** 2 / expected[2:]).sum()
    assert abs(statistic - (CAP - 2)) < 5 * math.sqrt(2 * (CAP - 2))
    short = length < CAP
    assert_binomial(int(short.sum()), len(length), pairs.SHORT_SHARE * (CAP - 2) / (CAP - 1))
