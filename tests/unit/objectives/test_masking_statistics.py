"""Masking on a million tokens, against the distributions that it promises. Seeds are fixed, so nothing here can flake.

Every bound is five standard deviations of what is compared.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.keyed import hashes
from pipeline.config.run import ObjectiveConfig
from pipeline.objectives.masking import corrupt, masking_settings
from pipeline.objectives.predictions import Predictions
from pipeline.objectives.span_masking import span_lengths, tile_with_spans
from pipeline.objectives.word_masking import measure_words
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, VOCAB_SIZE
from tests.unit.objectives.slow_masking import MASK_ID

NUM_ROWS, LENGTH = 2048, 512
SHARE = 77 / 512  # round(0.15 * 512) tokens of a row without special ones
TEXT_ID = 9


def masked(
    tokens: NDArray[np.int64],
    *,
    first_row: int = 0,
    seed: int = 7,
    word_starts: NDArray[np.bool_] | None = None,
    **changes: Any,
) -> Predictions:
    chosen_by = masking_settings(
        ObjectiveConfig(**changes), seed=seed, mask_id=MASK_ID, vocab_size=VOCAB_SIZE, special_ids=ALL_SPECIAL_IDS
    )
    return corrupt(tokens, np.arange(first_row, first_row + len(tokens)), word_starts, chosen_by)


def plain_text() -> NDArray[np.int64]:
    return np.full((NUM_ROWS, LENGTH), TEXT_ID)


def chosen_of(made: Predictions) -> NDArray[np.bool_]:
    chosen = np.zeros(made.input_ids.shape, np.bool_)
    chosen.ravel()[made.indices] = True
    return chosen


def assert_chi_square(observed: NDArray[np.number], expected: NDArray[np.floating] | float, degrees: int) -> None:
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees), (statistic, degrees)


def assert_near(observed: float, expected: float, variance: float) -> None:
    assert abs(observed - expected) <= 5 * math.sqrt(variance), (observed, expected)


@pytest.mark.parametrize("first_row", [0, 10**9])
@pytest.mark.parametrize("kind", ["token", "whole_word"])
def test_every_position_is_equally_likely(kind: str, first_row: int) -> None:
    """Words of one token, so that words are chosen as tokens are."""
    words = np.ones((NUM_ROWS, LENGTH), np.bool_)
    made = masked(plain_text(), first_row=first_row, word_starts=words, masking=kind)
    assert len(made.indices) == NUM_ROWS * 77
    observed = np.bincount(made.indices % LENGTH, minlength=LENGTH)
    # A row chooses without replacement: the variance of a count is that of a binomial, and the counts add up.
    scale = (1 - SHARE) * LENGTH / (LENGTH - 1)
    expected = NUM_ROWS * SHARE
    assert_chi_square((observed - expected) / math.sqrt(scale) + expected, expected, LENGTH - 1)


def test_every_position_of_other_lengths_is_equally_likely() -> None:
    """300 is no power of two: darts beyond the row are void."""
    made = masked(np.full((3500, 300), TEXT_ID))
    observed = np.bincount(made.indices % 300, minlength=300)
    expected, scale = 3500 * 0.15, 0.85 * 300 / 299
    assert_chi_square((observed - expected) / math.sqrt(scale) + expected, expected, 299)


def test_neighbouring_positions_and_rows_are_independent() -> None:
    """Pairs chosen together, at distances within a row and between rows, which are other batches and other epochs."""
    chosen = chosen_of(masked(plain_text()))
    in_row = 77 * 76 / (LENGTH * (LENGTH - 1))
    for distance in (1, 2, 3, 7, 16, 64):
        pairs = NUM_ROWS * (LENGTH - distance)
        together = int((chosen[:, distance:] & chosen[:, :-distance]).sum())
        assert_near(together, pairs * in_row, pairs * in_row)
        pairs = (NUM_ROWS - distance) * LENGTH
        together = int((chosen[distance:] & chosen[:-distance]).sum())
        assert_near(together, pairs * SHARE**2, pairs * SHARE**2)


@pytest.mark.parametrize("other", [{"first_row": NUM_ROWS}, {"first_row": 1}, {"first_row": 2**32}, {"seed": 8}])
@pytest.mark.parametrize("kind", ["token", "whole_word", "span"])
def test_epochs_and_seeds_are_independent(kind: str, other: dict[str, int]) -> None:
    """Spans of neighbouring tokens are chosen together, which multiplies the variance by at most their 10 tokens."""
    words = np.ones((NUM_ROWS, LENGTH), np.bool_)
    first, second = (
        chosen_of(masked(plain_text(), word_starts=words, masking=kind, **changes)) for changes in ({}, other)
    )
    expected = NUM_ROWS * LENGTH * SHARE**2
    assert_near(int((first & second).sum()), expected, expected * (10 if kind == "span" else 1))


@pytest.mark.parametrize("kind", ["token", "whole_word", "span"])
def test_shares_of_mask_random_and_kept_and_uniform_replacements(kind: str) -> None:
    """Every second token is special, so that a span has one token and its fate is one draw."""
    tokens = plain_text()
    tokens[:, ::2] = 3
    made = masked(tokens, word_starts=np.ones_like(tokens, np.bool_), masking=kind)
    now = made.input_ids.ravel()[made.indices]
    replaced = now[(now != MASK_ID) & (now != TEXT_ID)]
    # A random replacement may be the same id again: 1 of the 194 ordinary ones.
    shares = np.array([0.8, 0.1 + 0.1 / 194, 0.1 * 193 / 194])
    counts = np.array([(now == MASK_ID).sum(), (now == TEXT_ID).sum(), len(replaced)])
    assert_chi_square(counts, shares * len(now), 2)
    assert not np.isin(replaced, ALL_SPECIAL_IDS).any()
    by_id = np.delete(np.bincount(replaced, minlength=VOCAB_SIZE), [*ALL_SPECIAL_IDS, TEXT_ID])
    assert len(by_id) == 193
    assert_chi_square(by_id, by_id.mean(), 192)


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_shares_at_their_ends(shares: tuple[float, float]) -> None:
    mask_share, random_share = shares
    made = masked(plain_text()[:200], mask_token_share=mask_share, random_token_share=random_share)
    now = made.input_ids.ravel()[made.indices]
    total = len(now)
    assert_near((now == MASK_ID).sum(), mask_share * total, mask_share * (1 - mask_share) * total)
    kept = 1 - mask_share - random_share * 193 / 194
    assert_near((now == TEXT_ID).sum(), kept * total, kept * (1 - kept) * total)


def words_and_breaks() -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A million tokens: words of 1.7 tokens on average, and a special token in about every twentieth place."""
    generator = np.random.default_rng(5)
    tokens = np.where(generator.random((NUM_ROWS, LENGTH)) < 0.05, 3, TEXT_ID)
    return tokens, generator.random((NUM_ROWS, LENGTH)) < 0.6


def word_sizes(maskable: NDArray[np.bool_], word_starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tokens of the word that begins at every place, 0 where none does, (R, S)."""
    sizes = np.empty(maskable.shape, np.int64)
    for row in range(len(sizes)):
        measure_words(maskable[row], word_starts[row], sizes[row])
    return sizes


def partly_chosen_words(kind: str) -> NDArray[np.int64]:
    """Words of each row of which some tokens are chosen and some not, (R,)."""
    tokens, word_starts = words_and_breaks()
    made = masked(tokens, word_starts=word_starts, masking=kind)
    chosen = chosen_of(made)
    assert not chosen[tokens == 3].any()
    assert (made.counts == np.floor(0.15 * (tokens != 3).sum(1) + 0.5)).mean() > 0.99
    sizes = word_sizes(tokens != 3, word_starts).ravel()
    first = np.flatnonzero(sizes)
    size = sizes[first]
    before = np.concatenate([[0], np.cumsum(chosen)])
    num_chosen = before[first + size] - before[first]
    is_partly = (num_chosen > 0) & (num_chosen < size)
    return np.bincount(first[is_partly] // LENGTH, minlength=NUM_ROWS)


def test_words_are_masked_whole() -> None:
    assert partly_chosen_words("whole_word").max() == 0


def test_spans_cut_one_word_a_row_at_most() -> None:
    partly = partly_chosen_words("span")
    assert partly.max() == 1
    assert partly.mean() < 0.5


def test_long_words_are_chosen_as_often_as_short_ones() -> None:
    """But for the end of a row's budget, into which short words fit better: one word of about forty."""
    tokens, word_starts = words_and_breaks()
    chosen = chosen_of(masked(tokens, word_starts=word_starts, masking="whole_word"))
    sizes = word_sizes(tokens != 3, word_starts)
    for size in (1, 2, 3, 4):
        of_size = chosen[sizes == size]
        assert abs(of_size.mean() / 0.15 - 1) < 0.1


@pytest.mark.parametrize(("geometric_p", "max_words", "mean"), [(0.2, 10, 3.797), (0.5, 3, 1.571), (0.3, 1, 1.0)])
def test_span_lengths_follow_the_cut_geometric_distribution(geometric_p: float, max_words: int, mean: float) -> None:
    """Exactly in the table of lengths (SpanBERT's mean is 3.8 words), and by chi-square in the first spans of 65,536
    runs of 15 words."""
    shares = geometric_p * (1 - geometric_p) ** np.arange(max_words)
    shares /= shares.sum()
    table = span_lengths(geometric_p, max_words)
    assert np.abs(np.bincount(table, minlength=max_words + 1)[1:] - shares * 2**16).max() <= 1
    assert table.mean() == pytest.approx(mean, abs=1e-3)
    maskable = np.ones((NUM_ROWS, LENGTH), np.bool_)
    maskable[:, ::16] = False
    sizes = word_sizes(maskable, np.ones_like(maskable))
    for row, base_key in zip(sizes, hashes(3, np.arange(NUM_ROWS)), strict=True):
        tile_with_spans(row, base_key, table)
    first_of_run = sizes[:, 1::16].ravel()
    assert first_of_run.all()
    if max_words > 1:
        assert_chi_square(np.bincount(first_of_run)[1:], shares * len(first_of_run), max_words - 1)


def test_spans_cover_the_head_of_a_segment_like_the_rest() -> None:
    """A span that began at any word would cover the first word of a segment only by beginning there."""
    tokens = plain_text()
    tokens[:, ::16] = 3
    made = masked(tokens, word_starts=np.ones_like(tokens, np.bool_), masking="span")
    per_place = np.bincount(made.indices % 16, minlength=16)[1:]
    assert np.abs(per_place / per_place.mean() - 1).max() < 0.05
