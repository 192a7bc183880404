"""Keyed masking of every kind: equal to a slow reference, exact in count, independent of the batch."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.run import Masking, ObjectiveConfig
from pipeline.objectives.masking import MaskingSettings, corrupt, masking_settings, num_predictions
from pipeline.objectives.predictions import Predictions
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, VOCAB_SIZE
from tests.unit.objectives.slow_masking import MASK_ID, slow_corrupt

KINDS = get_args(Masking)


def settings(seed: int = 7, **changes: Any) -> MaskingSettings:
    config = ObjectiveConfig(**changes)
    return masking_settings(config, seed=seed, mask_id=MASK_ID, vocab_size=VOCAB_SIZE, special_ids=ALL_SPECIAL_IDS)


def some_rows(num_rows: int, length: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Random ids, specials among them, and padded tails of different length; words of 1.7 tokens on average."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, VOCAB_SIZE, (num_rows, length))
    is_text = np.arange(length) < generator.integers(0, length + 1, (num_rows, 1))
    return np.where(is_text, tokens, 0), generator.random((num_rows, length)) < 0.6


def masked(rows: tuple[NDArray[np.int64], NDArray[np.bool_]], chosen_by: MaskingSettings) -> Predictions:
    tokens, word_starts = rows
    return corrupt(tokens, np.arange(len(tokens)), word_starts, chosen_by)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 8, 61, 64, 65, 300])
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.99])
def test_equals_the_slow_reference(kind: Masking, length: int, rate: float) -> None:
    chosen_by = settings(seed=length, masking=kind, mask_rate=rate, span_geometric_p=0.3, span_max_words=4)
    tokens, word_starts = some_rows(12, length, seed=length)
    row_numbers = np.array([0, 1, 2, 5, 999, 2**20, 2**31, 2**32 + 1, 2**40, 7, 8, 9])
    made = corrupt(tokens, row_numbers, word_starts, chosen_by)
    for row, number in enumerate(row_numbers.tolist()):
        expected, labels = slow_corrupt(
            tokens[row].tolist(), word_starts[row].tolist(), length, number, chosen_by.config
        )
        of_row = made.indices // length == row
        assert made.input_ids[row].tolist() == expected
        assert dict(zip((made.indices[of_row] % length).tolist(), made.labels[of_row].tolist(), strict=True)) == labels
        assert made.counts[row] == len(labels)


@pytest.mark.parametrize("kind", KINDS)
def test_many_small_rows_equal_the_slow_reference(kind: Masking) -> None:
    """Rows of few words, where every corner of choosing is met: too long words, nothing to choose, spans cut short."""
    chosen_by = settings(masking=kind, mask_rate=0.35)
    tokens, word_starts = some_rows(3000, 13, seed=2)
    word_starts &= np.random.default_rng(3).random(word_starts.shape) < 0.5
    made = corrupt(tokens, np.arange(3000), word_starts, chosen_by)
    expected = [
        slow_corrupt(ids, starts, 7, number, chosen_by.config)
        for number, (ids, starts) in enumerate(zip(tokens.tolist(), word_starts.tolist(), strict=True))
    ]
    assert made.input_ids.tolist() == [corrupted for corrupted, _ in expected]
    assert made.counts.tolist() == [len(labels) for _, labels in expected]
    found: list[dict[int, int]] = [{} for _ in expected]
    for index, label in zip(made.indices.tolist(), made.labels.tolist(), strict=True):
        found[index // 13][index % 13] = label
    assert found == [labels for _, labels in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_only_ordinary_tokens_are_predicted_and_the_others_stay(kind: Masking) -> None:
    tokens, word_starts = some_rows(200, 128)
    made = masked((tokens, word_starts), settings(masking=kind))
    maskable = ~np.isin(tokens, ALL_SPECIAL_IDS)
    assert maskable.ravel()[made.indices].all()
    assert len(np.unique(made.indices)) == len(made.indices)
    assert (np.diff(made.indices // 128) >= 0).all()
    untouched = np.ones(tokens.size, bool)
    untouched[made.indices] = False
    assert np.array_equal(made.input_ids.ravel()[untouched], tokens.ravel()[untouched])
    per_row = np.bincount(made.indices // 128, minlength=200)
    assert np.array_equal(made.counts, per_row)
    wanted = [math.floor(0.15 * count + 0.5) for count in maskable.sum(1).tolist()]
    if kind == "whole_word":
        assert (per_row <= wanted).all()
        assert (per_row == wanted).mean() > 0.9
    else:
        assert per_row.tolist() == wanted


def test_halves_are_rounded_up() -> None:
    assert [num_predictions(count, 0.25) for count in (0, 2, 6, 10, 14, 510)] == [0, 1, 2, 3, 4, 128]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_can_be_asked_for(kind: Masking) -> None:
    tokens, word_starts = some_rows(20, 33)
    made = masked((tokens, word_starts), settings(masking=kind, mask_rate=1.0))
    assert np.array_equal(np.sort(made.indices), np.flatnonzero(~np.isin(tokens, ALL_SPECIAL_IDS)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_masked_alike_in_any_batch(kind: Masking) -> None:
    """Alone, in another order, and among so many that they are masked in several blocks."""
    tokens, word_starts = some_rows(300, 256)
    numbers = np.arange(1000, 1300)
    chosen_by = settings(masking=kind)
    whole = corrupt(tokens, numbers, word_starts, chosen_by)
    order = np.random.default_rng(1).permutation(300)
    shuffled = corrupt(tokens[order], numbers[order], word_starts[order], chosen_by)
    assert np.array_equal(shuffled.input_ids, whole.input_ids[order])
    assert np.array_equal(shuffled.dense_labels(), whole.dense_labels()[order])
    alone = corrupt(tokens[3:4], numbers[3:4], word_starts[3:4], chosen_by)
    assert np.array_equal(alone.input_ids[0], whole.input_ids[3])
    assert np.array_equal(alone.dense_labels()[0], whole.dense_labels()[3])


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_and_rows_without_text(kind: Masking) -> None:
    for num_rows in (0, 3):
        tokens = np.zeros((num_rows, 16), np.int64)
        made = corrupt(tokens, np.full(num_rows, -1), np.ones((num_rows, 16), bool), settings(masking=kind))
        assert np.array_equal(made.input_ids, tokens)
        assert len(made.indices) == len(made.labels) == 0
        assert made.counts.tolist() == [0] * num_rows


@pytest.mark.parametrize("kind", ["whole_word", "span"])
def test_words_are_asked_for_where_there_are_none(kind: Masking) -> None:
    message = (
        rf"`{kind}` needs to know where words begin, .* build it with shards\.words: true, or set objective\.masking"
    )
    with pytest.raises(UserError, match=message):
        corrupt(np.zeros((2, 16), np.int64), np.arange(2), None, settings(masking=kind))


def test_what_replaces_a_token_does_not_depend_on_how_likely_it_was_chosen() -> None:
    """The tokens that a rate of 0.05 chooses meet the same fates under a rate of 0.3."""
    rows = some_rows(100, 128)
    few, many = (masked(rows, settings(mask_rate=rate)) for rate in (0.05, 0.3))
    assert set(few.indices.tolist()) < set(many.indices.tolist())
    assert np.array_equal(few.input_ids.ravel()[few.indices], many.input_ids.ravel()[few.indices])
