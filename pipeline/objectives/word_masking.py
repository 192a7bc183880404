"""Which tokens are predicted when words are masked whole: words in random order, each that still fits.

Letters: R rows, W width of a row (a power of two), D darts a row, U units (words or spans).

As ``create_masked_lm_predictions`` of google-research/bert does with ``do_whole_word_mask``: words are visited in a
random order, and one that would exceed the number of predictions is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.objectives.darts import Choice, throw_darts

_STREAM: Final = 0x574F5244  # "WORD"


@dataclass(frozen=True, eq=False)
class Units:
    """Runs of maskable tokens that are chosen together, none across rows."""

    begins: NDArray[np.bool_]
    """Where a unit begins, (R, W)."""

    num_tokens: NDArray[np.int32]
    """Tokens of the unit that begins there; arbitrary where none does, (R, W)."""


def words_of(maskable: NDArray[np.bool_], word_starts: NDArray[np.bool_]) -> Units:
    """The words of rows: from a start to the next one, or to what cannot be predicted, or to the end of the row.

    Args:
        maskable, word_starts: (R, W).
    """
    begins = word_starts.copy()
    begins[:, 0] = True
    begins[:, 1:] |= ~maskable[:, :-1]  # R W
    edges = np.flatnonzero(begins | ~maskable)
    num_tokens = np.empty(maskable.shape, np.int32)
    num_tokens.reshape(-1)[edges] = np.diff(edges, append=maskable.size)
    begins &= maskable
    return Units(begins, num_tokens)


def choose_words(
    maskable: NDArray[np.bool_],
    counts: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    seed: int,
    num_darts: int,
    word_starts: NDArray[np.bool_],
) -> Choice:
    """Whole words in the order in which darts hit their first tokens: of every row ``counts`` tokens, or as many as fit
    without one more word.

    A word of more tokens than its row's count is never chosen.

    Args:
        maskable, word_starts: (R, W).
        counts: (R,).
        row_numbers: run-wide numbers of the rows, (R,).
    """
    words = words_of(maskable, word_starts)

    def select(
        rows: NDArray[np.int64], target: NDArray[np.int64], is_hit: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        hits = np.flatnonzero(is_hit)
        row, size = hits // is_hit.shape[1], words.num_tokens.take(target.take(hits))
        taken, left = take_fitting(row, size, counts[rows])
        num_tokens = np.zeros(is_hit.shape, np.int32)
        num_tokens.reshape(-1)[hits[taken]] = size[taken]
        # What was hit and left out is too long; is there a word that fits and has not been hit?
        some_left = np.flatnonzero(left)
        in_rows = rows[some_left]
        fits = words.begins[in_rows] & (words.num_tokens[in_rows] <= left[some_left, None])
        num_hit = np.bincount(row[size <= left[row]], minlength=len(rows))
        is_done = np.ones(len(rows), np.bool_)
        is_done[some_left] = fits.sum(1) == num_hit[some_left]
        return num_tokens, is_done

    return throw_darts(words.begins, hashes(key(seed, _STREAM), row_numbers), num_darts, select)


def take_fitting(
    row: NDArray[np.int64], num_tokens: NDArray[np.integer], counts: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """What a greedy pass over each row takes: every unit, in this order, that does not exceed what is left.

    Each round takes the longest prefix that fits of every row at once, then forgets the units that are too long for
    what is left, the one after the prefix among them. Rounds are few: what is left is then shorter than that unit.

    Args:
        row, num_tokens: of units, those of a row together, (U,).
        counts: most tokens of every row, (R,).

    Returns:
        whether each unit is taken, (U,); what is left of the counts, (R,).
    """
    taken = np.zeros(len(row), np.bool_)
    left = counts.copy()
    candidates = np.arange(len(row))
    while len(candidates):
        own_row, size = row.take(candidates), num_tokens.take(candidates)
        fits = tokens_through(own_row, size, len(left)) <= left.take(own_row)
        taken[candidates[fits]] = True
        left -= np.bincount(own_row[fits], size[fits], len(left)).astype(np.int64)
        candidates = candidates[~fits]
        candidates = candidates[num_tokens[candidates] <= left[row[candidates]]]
    return taken, left


def tokens_through(row: NDArray[np.int64], num_tokens: NDArray[np.integer], num_rows: int) -> NDArray[np.int64]:
    """Tokens of a row's units up to and with each of them, (U,); the units of a row stand together, rows ascending."""
    through = np.cumsum(num_tokens, dtype=np.int64)
    units_of_row = np.bincount(row, minlength=num_rows)
    first_unit = np.cumsum(units_of_row) - units_of_row
    return through - (through - num_tokens).take(first_unit.take(row))
