"""Which tokens are predicted when spans of words are masked (SpanBERT, Joshi et al. 2020, section 3.1).

Letters: R rows, S sequence length, U units (words or spans), P predictions.

SpanBERT draws a length in words from a geometric distribution and a random word to begin at, again and again until
enough tokens are masked; what overlaps is drawn in vain. Here every run of words is tiled with spans of such lengths,
and spans are taken in keyed order until enough tokens are masked: none overlap, each word is equally likely, and no
draw waits for another.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.objectives.choice import Choice
from pipeline.objectives.word_masking import Units, in_keyed_order, place_draws, tokens_through, words_of

_ORDER_STREAM: Final = 0x5350414E  # "SPAN"
_LENGTH_STREAM: Final = 0x4C454E47  # "LENG"


def span_length_thresholds(geometric_p: float, max_words: int) -> NDArray[np.uint64]:
    """Bounds of 32 uniform bits between the lengths 1, 2, ... ``max_words``, (max_words - 1,).

    The geometric distribution is cut at ``max_words`` and scaled to one: ``P(n) ~ p * (1 - p)**(n - 1)``, as SpanBERT's
    code does (its mean of 3.8 words is that of p = 0.2 and 10 words).
    """
    longer = [1.0]
    for _ in range(max_words):
        longer.append(longer[-1] * (1 - geometric_p))
    at_most = [(1 - longer[words]) / (1 - longer[-1]) for words in range(1, max_words)]
    return np.array([math.ceil(share * 2**32) for share in at_most], np.uint64)


def choose_spans(
    maskable: NDArray[np.bool_],
    counts: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    seed: int,
    word_starts: NDArray[np.bool_],
    length_thresholds: NDArray[np.uint64],
) -> Choice:
    """Choose spans of whole words: of every row exactly ``counts`` tokens.

    The last span of a row is cut where the count is met, inside a word if need be, as in SpanBERT's code. All tokens of
    a span share one fate; random tokens are drawn for each.

    Args:
        maskable, word_starts: (R, S).
        counts: (R,).
        row_numbers: run-wide numbers of the rows, (R,).
        length_thresholds: see :func:`span_length_thresholds`.
    """
    length = maskable.shape[1]
    spans = _tiles(words_of(maskable, word_starts), row_numbers, seed, length, length_thresholds)
    spans = in_keyed_order(spans, hashes(key(seed, _ORDER_STREAM), row_numbers), length)
    before = tokens_through(spans.row, spans.num_tokens) - spans.num_tokens  # U
    num_tokens = np.clip(counts[spans.row] - before, 0, spans.num_tokens)  # U
    chosen = Units(spans.first, num_tokens, spans.row).part(np.flatnonzero(num_tokens))
    indices = chosen.tokens()
    fates = np.repeat(place_draws(chosen.first, row_numbers, seed, length), chosen.num_tokens)
    return Choice(indices, fates, place_draws(indices, row_numbers, seed, length))


def _tiles(
    words: Units,
    row_numbers: NDArray[np.int64],
    seed: int,
    length: int,
    length_thresholds: NDArray[np.uint64],
) -> Units:
    """Spans that cover every run of words without a gap, each of the drawn number of words but the last of a run.

    The j-th span of a run has the length that was drawn at the run's j-th word.
    """
    num_words = len(words.row)
    row_keys = hashes(key(seed, _LENGTH_STREAM), row_numbers)  # R
    draws = hashes(row_keys[words.row], words.first - words.row * length) >> np.uint64(32)  # U
    drawn = np.searchsorted(length_thresholds, draws, side="right") + 1  # U
    # A run ends where the next word does not follow without a gap, or in another row.
    begins_run = np.diff(words.first, prepend=-1) != np.concatenate([[0], words.num_tokens[:-1]])[:num_words]
    begins_run |= np.diff(words.row, prepend=-1) != 0
    first_of_run = np.flatnonzero(begins_run)
    words_of_run = np.diff(first_of_run, append=num_words)
    first_word = np.repeat(first_of_run, words_of_run)  # U, of the word's run
    before = np.cumsum(drawn) - drawn  # U
    begin = first_word + before - before[first_word]  # U, first word of the run's j-th span
    begin = begin[begin < np.repeat(first_of_run + words_of_run, words_of_run)]
    end_token = (words.first + words.num_tokens)[np.append(begin[1:], num_words)[: len(begin)] - 1]
    return Units(words.first[begin], end_token - words.first[begin], words.row[begin])
