"""Which tokens are predicted when words are masked whole: words in keyed order, each that still fits.

Letters: R rows, S sequence length, U units (words or spans), P predictions.

As ``create_masked_lm_predictions`` of google-research/bert does with ``do_whole_word_mask``: words are visited in a
random order, and one that would exceed the number of predictions is skipped. The order here is that of a hash of
(row, place).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.objectives.choice import Choice

_ORDER_STREAM: Final = 0x574F5244  # "WORD"
_FATE_STREAM: Final = 0x46415445  # "FATE"


@dataclass(frozen=True, eq=False)
class Units:
    """Runs of maskable tokens that are chosen together, ascending, none across rows."""

    first: NDArray[np.int64]
    """Flat index of the first token, (U,)."""

    num_tokens: NDArray[np.int64]
    """(U,)."""

    row: NDArray[np.int64]
    """(U,)."""

    def part(self, which: NDArray[np.int64]) -> Units:
        return Units(self.first[which], self.num_tokens[which], self.row[which])

    def tokens(self) -> NDArray[np.int64]:
        """Flat indices of all tokens, unit after unit."""
        before = np.cumsum(self.num_tokens) - self.num_tokens  # U
        return np.repeat(self.first - before, self.num_tokens) + np.arange(self.num_tokens.sum())


def words_of(maskable: NDArray[np.bool_], word_starts: NDArray[np.bool_]) -> Units:
    """The words of rows: from a start to the next one, or to what cannot be predicted, or to the end of the row.

    Args:
        maskable, word_starts: (R, S).
    """
    flat = maskable.ravel()
    begins = word_starts.copy()
    begins[:, 0] = True
    begins[:, 1:] |= ~maskable[:, :-1]  # R S
    edges = np.flatnonzero(begins.ravel() | ~flat)
    sizes = np.diff(edges, append=flat.size)
    is_word = flat[edges]
    first = edges[is_word]
    return Units(first, sizes[is_word], first // maskable.shape[1])


def in_keyed_order(units: Units, row_keys: NDArray[np.uint64], length: int) -> Units:
    """Units of every row sorted by the hash of the place where they begin, ties by place.

    The sort keys are unique, so that every sorting algorithm gives the same order.
    """
    first_unit = np.searchsorted(units.row, np.arange(len(row_keys)))  # R
    rank = np.arange(len(units.row)) - first_unit[units.row]  # U
    draws = hashes(row_keys[units.row], units.first - units.row * length)  # U
    # 16 bits of row in the block, 32 of the draw, 16 of rank in the row.
    keys = (units.row.astype(np.uint64) << np.uint64(48)) | (draws >> np.uint64(32) << np.uint64(16))
    keys |= rank.astype(np.uint64)
    keys.sort()
    return units.part((keys & np.uint64(0xFFFF)).astype(np.int64) + first_unit[units.row])


def take_fitting(units: Units, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Units, in this order, that a greedy pass over each row takes: every one that does not exceed what is left, (U,).

    Each round takes the longest prefix that fits of every row at once, then forgets the units that are too long for
    what is left, the one after the prefix among them. Rounds are few: what is left is then shorter than that unit.
    """
    taken = np.zeros(len(units.row), np.bool_)
    left = counts.copy()  # R
    open_units = np.arange(len(units.row))
    while len(open_units):
        row, size = units.row[open_units], units.num_tokens[open_units]
        through = tokens_through(row, size)
        fits = through <= left[row]
        taken[open_units[fits]] = True
        left -= np.bincount(row[fits], size[fits], len(counts)).astype(np.int64)
        open_units = open_units[~fits]
        open_units = open_units[units.num_tokens[open_units] <= left[units.row[open_units]]]
    return taken


def tokens_through(row: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of a row's units up to and with each of them, (U,); the units of a row stand together."""
    total = np.cumsum(num_tokens)
    is_first = np.diff(row, prepend=-1) != 0
    before = (total - num_tokens)[is_first]
    return total - np.repeat(before, np.diff(np.flatnonzero(is_first), append=len(row)))


def choose_words(
    maskable: NDArray[np.bool_],
    counts: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    seed: int,
    word_starts: NDArray[np.bool_],
) -> tuple[Choice, NDArray[np.int64]]:
    """Choose whole words: of every row ``counts`` tokens, or as many as fit without one more word.

    A word of more tokens than its row's count is never chosen.

    Args:
        maskable, word_starts: (R, S).
        counts: (R,).
        row_numbers: run-wide numbers of the rows, (R,).

    Returns:
        the choice, and how many tokens of every row were chosen, (R,).
    """
    length = maskable.shape[1]
    row_keys = hashes(key(seed, _ORDER_STREAM), row_numbers)
    words = in_keyed_order(words_of(maskable, word_starts), row_keys, length)
    chosen = words.part(np.flatnonzero(take_fitting(words, counts)))
    indices = chosen.tokens()
    draws = place_draws(indices, row_numbers, seed, length)
    return Choice(indices, draws, draws), np.bincount(indices // length, minlength=len(counts))


def place_draws(
    indices: NDArray[np.int64], row_numbers: NDArray[np.int64], seed: int, length: int
) -> NDArray[np.uint64]:
    """A draw for every place, ``hash(row key, place)``, (P,)."""
    row = indices // length
    return hashes(hashes(key(seed, _FATE_STREAM), row_numbers)[row], indices - row * length)
