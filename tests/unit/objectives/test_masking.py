"""Keyed masking: equal to a slow reference, exact in count, uniform in distribution, independent of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.keyed import key, mix
from pipeline.objectives import masking
from pipeline.objectives.masking import MaskingSettings, corrupt, masking_settings, num_predictions

SPECIAL_IDS = [0, 1, 2, 3, 4, 150]
GOLDEN = 0x9E3779B97F4A7C15


def settings(**changes: float) -> MaskingSettings:
    shares = {"rate": 0.15, "mask_token_share": 0.8, "random_token_share": 0.1, **changes}
    return masking_settings(
        seed=int(shares.pop("seed", 7)), mask_id=4, vocab_size=200, special_ids=SPECIAL_IDS, **shares
    )


def some_rows(num_rows: int, length: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Random ids, specials among them, and padded tails of different length."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 200, (num_rows, length))
    is_real = np.arange(length) < generator.integers(0, length + 1, (num_rows, 1))
    return np.where(is_real, tokens, 0), is_real


def slow_keys(row_number: int, length: int, seed: int) -> list[int]:
    """32-bit sort keys of one row with Python's integers, one position after the other."""
    word = 0xFFFFFFFF
    row_key = mix(key(seed, masking._CHOICE_STREAM) + row_number * GOLDEN)
    bits = max(length - 1, 1).bit_length()
    keys = []
    for position in range(length):
        value = (position * 0x9E3779B9 + (row_key & word)) & word
        value ^= value >> 16
        value = (value * 0x7FEB352D) & word
        value ^= row_key >> 32
        value ^= value >> 15
        value = (value * 0x846CA68B) & word
        value ^= value >> 16
        keys.append(value >> bits << bits | position)
    return keys


def slow_corrupt(
    tokens: list[int], is_real: list[bool], row_number: int, chosen_by: MaskingSettings
) -> tuple[list[int], dict[int, int]]:
    """One row, token by token: corrupted ids, and labels by position."""
    keys = slow_keys(row_number, len(tokens), chosen_by.seed)
    maskable = [p for p in range(len(tokens)) if is_real[p] and tokens[p] not in SPECIAL_IDS]
    count = math.floor(chosen_by.rate * len(maskable) + 0.5)
    ordinary = [token for token in range(200) if token not in SPECIAL_IDS]
    corrupted, labels = list(tokens), {}
    for position in sorted(maskable, key=lambda p: keys[p])[:count]:
        row_key = mix(key(chosen_by.seed, masking._FATE_STREAM) + row_number * GOLDEN)
        draw = mix((row_key + position) * GOLDEN)
        fate = (draw >> 32) / 2**32
        labels[position] = tokens[position]
        if fate < chosen_by.mask_token_share:
            corrupted[position] = 4
        elif fate < chosen_by.mask_token_share + chosen_by.random_token_share:
            corrupted[position] = ordinary[((draw & 0xFFFFFFFF) * len(ordinary)) >> 32]
    return corrupted, labels


@pytest.mark.parametrize("length", [1, 2, 8, 61, 64, 65, 300])
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.99])
def test_equals_the_slow_reference(length: int, rate: float) -> None:
    chosen_by = settings(rate=rate, seed=length)
    tokens, is_real = some_rows(12, length, seed=length)
    row_numbers = np.array([0, 1, 2, 5, 999, 2**20, 2**31, 2**32 + 1, 2**40, 7, 8, 9])
    corrupted, indices = corrupt(tokens, row_numbers, is_real, chosen_by)
    for row, number in enumerate(row_numbers.tolist()):
        expected, labels = slow_corrupt(tokens[row].tolist(), is_real[row].tolist(), number, chosen_by)
        assert corrupted[row].tolist() == expected
        assert (indices[indices // length == row] % length).tolist() == sorted(labels)


def test_count_is_exact_in_every_row_and_specials_never_count() -> None:
    tokens, is_real = some_rows(200, 128)
    corrupted, indices = corrupt(tokens, np.arange(200), is_real, settings())
    maskable = is_real & ~np.isin(tokens, SPECIAL_IDS)
    per_row = np.bincount(indices // 128, minlength=200)
    assert per_row.tolist() == [math.floor(0.15 * count + 0.5) for count in maskable.sum(1).tolist()]
    assert maskable.ravel()[indices].all()
    untouched = np.ones(tokens.size, bool)
    untouched[indices] = False
    assert np.array_equal(corrupted.ravel()[untouched], tokens.ravel()[untouched])


def test_halves_are_rounded_up() -> None:
    assert num_predictions(np.array([0, 2, 6, 10, 14, 510]), 0.25).tolist() == [0, 1, 2, 3, 4, 128]


def test_every_token_can_be_asked_for() -> None:
    tokens, is_real = some_rows(20, 33)
    _, indices = corrupt(tokens, np.arange(20), is_real, settings(rate=1.0))
    assert np.array_equal(indices, np.flatnonzero(is_real & ~np.isin(tokens, SPECIAL_IDS)))


def test_a_row_is_masked_alike_in_any_batch() -> None:
    tokens, is_real = some_rows(30, 64)
    numbers = np.arange(1000, 1030)
    whole, _ = corrupt(tokens, numbers, is_real, settings())
    order = np.random.default_rng(1).permutation(30)
    shuffled, _ = corrupt(tokens[order], numbers[order], is_real[order], settings())
    assert np.array_equal(shuffled, whole[order])
    alone, _ = corrupt(tokens[3:4], numbers[3:4], is_real[3:4], settings())
    assert np.array_equal(alone[0], whole[3])


def test_other_row_numbers_and_seeds_give_other_masks() -> None:
    """Two masks of 19 of 126 tokens agree in 19 * 19 / 126 = 2.9 places a row by chance, 573 over 200 rows (sd 21)."""
    tokens = np.full((200, 126), 9)
    is_real = np.ones((200, 126), bool)

    def chosen(first_row: int, seed: int) -> set[int]:
        _, indices = corrupt(tokens, np.arange(first_row, first_row + 200), is_real, settings(seed=seed))
        assert len(indices) == 200 * 19
        return set(indices.tolist())

    base = chosen(0, 7)
    assert chosen(0, 7) == base
    for other in (chosen(200, 7), chosen(1, 7), chosen(0, 8), chosen(2**32, 7)):
        assert abs(len(base & other) - 573) < 5 * 21


@pytest.mark.parametrize("first_row", [0, 10**9])
def test_every_position_is_equally_likely(first_row: int) -> None:
    """2,048 rows of 512 tokens. The chi-square of the counts has 511 degrees of freedom, so sd 32 (5 sd tolerated)."""
    rows, length, count = 2048, 512, 77
    _, indices = corrupt(
        np.full((rows, length), 9), np.arange(first_row, first_row + rows), np.ones((rows, length), bool), settings()
    )
    assert len(indices) == rows * count
    share = count / length
    observed = np.bincount(indices % length, minlength=length)
    # A row chooses without replacement: counts of positions vary by rows * share * (1 - share).
    chi_square = ((observed - rows * share) ** 2).sum() / (rows * share * (1 - share)) * (length - 1) / length
    assert abs(chi_square - (length - 1)) < 5 * math.sqrt(2 * (length - 1))


def test_neighbouring_positions_and_rows_are_independent() -> None:
    """Pairs chosen together, at distances in a row and between rows, against chance."""
    rows, length, count = 2048, 512, 77
    _, indices = corrupt(np.full((rows, length), 9), np.arange(rows), np.ones((rows, length), bool), settings())
    chosen = np.zeros((rows, length), bool)
    chosen.ravel()[indices] = True
    in_row = count * (count - 1) / (length * (length - 1))
    between = (count / length) ** 2
    for distance in (1, 2, 3, 7, 16, 64):
        pairs = rows * (length - distance)
        together = int((chosen[:, distance:] & chosen[:, :-distance]).sum())
        assert abs(together - pairs * in_row) < 5 * math.sqrt(pairs * in_row)
        pairs = (rows - distance) * length
        together = int((chosen[distance:] & chosen[:-distance]).sum())
        assert abs(together - pairs * between) < 5 * math.sqrt(pairs * between)


def test_shares_of_mask_random_and_kept_and_uniform_replacements() -> None:
    """157,696 predictions over 2,048 rows of 512 tokens, all tokens the same ordinary id."""
    rows, length = 2048, 512
    tokens = np.full((rows, length), 9)
    corrupted, indices = corrupt(tokens, np.arange(rows), np.ones((rows, length), bool), settings())
    now = corrupted.ravel()[indices]
    total = len(indices)
    masked, kept = int((now == 4).sum()), int((now == 9).sum())
    others = now[(now != 4) & (now != 9)]
    # A random replacement may be the same id again: 1 of the 194 ordinary ones.
    expected = {"masked": 0.8, "kept": 0.1 + 0.1 / 194, "others": 0.1 * 193 / 194}
    for name, observed in {"masked": masked, "kept": kept, "others": len(others)}.items():
        share = expected[name]
        assert abs(observed - total * share) < 4 * math.sqrt(total * share * (1 - share)), name
    assert not np.isin(others, SPECIAL_IDS).any()
    counts = np.bincount(others, minlength=200)
    counts = np.delete(counts, [*SPECIAL_IDS, 9])
    chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    assert len(counts) == 193
    assert abs(chi_square - 192) < 5 * math.sqrt(2 * 192)


def test_what_replaces_a_token_does_not_depend_on_how_likely_it_was_chosen() -> None:
    """The tokens that a rate of 0.05 chooses meet the same fates under a rate of 0.3."""
    tokens, is_real = some_rows(100, 128)
    few, few_indices = corrupt(tokens, np.arange(100), is_real, settings(rate=0.05))
    many, many_indices = corrupt(tokens, np.arange(100), is_real, settings(rate=0.3))
    assert set(few_indices.tolist()) < set(many_indices.tolist())
    assert np.array_equal(few.ravel()[few_indices], many.ravel()[few_indices])
