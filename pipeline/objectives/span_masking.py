"""Which tokens are predicted when spans of words are masked (SpanBERT, Joshi et al. 2020, section 3.1).

Letters: R rows, W width of a row (a power of two), D darts a row, U units (words or spans).

SpanBERT draws a length in words from a geometric distribution and a random word to begin at, again and again until
enough tokens are masked; what overlaps is drawn in vain. Here every run of words is tiled with spans of such lengths,
and spans are taken in random order until enough tokens are masked. None overlap, words at the head of a segment are as
likely as others, and no draw waits for another.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.objectives.darts import Choice, throw_darts
from pipeline.objectives.word_masking import Units, tokens_through, words_of

_ORDER_STREAM: Final = 0x5350414E  # "SPAN"
_LENGTH_STREAM: Final = 0x4C454E47  # "LENG"


def span_lengths(geometric_p: float, max_words: int) -> NDArray[np.int32]:
    """Length in words for every value of 16 uniform bits, (65536,).

    The geometric distribution is cut at ``max_words`` and scaled to one: ``P(n) ~ p * (1 - p)**(n - 1)``, as SpanBERT's
    code does (its mean of 3.8 words is that of p = 0.2 and 10 words).
    """
    longer = [1.0]
    for _ in range(max_words):
        longer.append(longer[-1] * (1 - geometric_p))
    at_most = [(1 - share) / (1 - longer[-1]) for share in longer[1:-1]]
    lengths = np.searchsorted(np.array(at_most) * 2**16, np.arange(2**16), side="right") + 1
    return lengths.astype(np.int32)


def choose_spans(
    maskable: NDArray[np.bool_],
    counts: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    seed: int,
    num_darts: int,
    word_starts: NDArray[np.bool_],
    lengths: NDArray[np.int32],
) -> Choice:
    """Spans of whole words in the order in which darts hit their first tokens: of every row exactly ``counts`` tokens.

    The last span of a row is cut where the count is met, inside a word if need be, as in SpanBERT's code.

    Args:
        maskable, word_starts: (R, W).
        counts: (R,).
        row_numbers: run-wide numbers of the rows, (R,).
        lengths: see :func:`span_lengths`.
    """
    spans = spans_of(maskable, word_starts, row_numbers, seed, lengths)

    def select(
        rows: NDArray[np.int64], target: NDArray[np.int64], is_hit: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        hits = np.flatnonzero(is_hit)
        row, size, wanted = hits // is_hit.shape[1], spans.num_tokens.take(target.take(hits)), counts[rows]
        before = tokens_through(row, size, len(rows)) - size
        num_tokens = np.zeros(is_hit.shape, np.int64)
        num_tokens.reshape(-1)[hits] = np.clip(wanted[row] - before, 0, size)
        return num_tokens, num_tokens.sum(1) == wanted

    return throw_darts(spans.begins, hashes(key(seed, _ORDER_STREAM), row_numbers), num_darts, select)


def _length_draws(row_numbers: NDArray[np.int64], seed: int, width: int) -> NDArray[np.uint16]:
    """16 uniform bits for every place, (R, W): a quarter of ``hash(row key, place // 4)``, the lowest first."""
    row_keys = hashes(key(seed, _LENGTH_STREAM), row_numbers)
    draws = hashes(row_keys[:, None], np.arange(-(-width // 4)))
    return draws.astype("<u8", copy=False).view("<u2")[:, :width]


def spans_of(
    maskable: NDArray[np.bool_],
    word_starts: NDArray[np.bool_],
    row_numbers: NDArray[np.int64],
    seed: int,
    lengths: NDArray[np.int32],
) -> Units:
    """Spans that cover every run of words without a gap.

    The j-th span of a run has the length drawn at the run's j-th word; the last one has what is left.
    """
    words, width = words_of(maskable, word_starts), maskable.shape[1]
    starts = np.flatnonzero(words.begins)  # U
    ends = starts + words.num_tokens.take(starts)  # U
    num_words = len(starts)
    drawn = lengths.take(_length_draws(row_numbers, seed, width).ravel().take(starts))  # U
    # A run begins where the word before ends earlier, or in another row.
    begins_run = (starts != np.append(-1, ends)[:num_words]) | (starts & (width - 1) == 0)
    first_of_run = np.flatnonzero(begins_run)
    words_of_run = np.diff(first_of_run, append=num_words)
    first_word = np.repeat(first_of_run, words_of_run)  # U, of the word's run
    before = np.cumsum(drawn, dtype=np.int64) - drawn  # U
    begin = first_word + before - before.take(first_word)  # U, first word of the run's j-th span
    begin = begin[begin < np.repeat(first_of_run + words_of_run, words_of_run)]
    last_word = np.append(begin[1:], num_words)[: len(begin)] - 1
    first = starts.take(begin)
    begins, num_tokens = np.zeros(maskable.shape, np.bool_), np.empty(maskable.shape, np.int32)
    begins.reshape(-1)[first] = True
    num_tokens.reshape(-1)[first] = ends.take(last_word) - first
    return Units(begins, num_tokens)
