"""Which tokens are predicted when spans of words are masked (SpanBERT, Joshi et al. 2020, section 3.1).

SpanBERT draws a length in words from a geometric distribution and a random word to begin at, again and again until
enough tokens are masked; what overlaps is drawn in vain. Here every run of words is tiled with spans of such lengths,
and spans are taken in random order until enough tokens are masked. None overlap, words at the head of a segment are as
likely as others, and no draw waits for another.

Letters: S sequence length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.keyed_kernels import hash_u64
from pipeline.objectives.darts import fate_of, next_dart, place_of, width_of


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


@kernel
def tile_with_spans(sizes: NDArray[np.int64], lengths_key: np.uint64, lengths: NDArray[np.int32]) -> None:
    """Join the words of a row to spans that cover every run of words without a gap.

    The j-th span of a run has the length drawn at the run's j-th word; the last one has what is left. The draw of a
    place is a quarter of ``hash(lengths_key, place // 4)``, the lowest first.

    Args:
        sizes: from ``word_masking.measure_words``; afterwards the tokens of the span that begins at each place, (S,).
        lengths: see :func:`span_lengths`.
    """
    starts = np.empty(len(sizes) + 1, np.int64)
    place = 0
    while place < len(sizes):
        if sizes[place] == 0:
            place += 1
            continue
        num_words = 0
        while place < len(sizes) and sizes[place] > 0:
            starts[num_words] = place
            num_words += 1
            place += sizes[place]
        starts[num_words] = place
        word = 0
        for span in range(num_words):
            drawn_at = starts[span]
            draw = hash_u64(lengths_key, np.uint64(drawn_at >> 2)) >> np.uint64(16 * (drawn_at & 3))
            end = min(word + lengths[np.int64(draw & np.uint64(0xFFFF))], num_words)
            sizes[starts[word]] = starts[end] - starts[word]
            for joined in range(word + 1, end):
                sizes[starts[joined]] = 0
            word = end
            if word == num_words:
                break


@kernel
def choose_spans(
    sizes: NDArray[np.int64],
    num_wanted: int,
    order_key: np.uint64,
    places: NDArray[np.int64],
    fates: NDArray[np.int64],
) -> int:
    """Spans of a row in the order in which darts hit their first tokens: exactly ``num_wanted`` tokens.

    The last span is cut where the count is met, inside a word if need be, as in SpanBERT's code. The tokens of a span
    have one fate.

    Args:
        sizes: from :func:`tile_with_spans`; 0 afterwards where a span was hit, (S,).
        num_wanted: at most all tokens of all spans.
        order_key: of the row.
        places: filled with the chosen tokens, (S,).
        fates: filled with 16 uniform bits for each, (S,).

    Returns:
        ``num_wanted``.
    """
    width = width_of(len(sizes))
    dart, number, num_chosen = np.uint64(0), 0, 0
    while num_chosen < num_wanted:
        dart = next_dart(order_key, number, dart)
        number += 1
        place = place_of(dart, width)
        if place >= len(sizes) or sizes[place] == 0:
            continue
        for token in range(place, place + min(sizes[place], num_wanted - num_chosen)):
            places[num_chosen] = token
            fates[num_chosen] = fate_of(dart)
            num_chosen += 1
        sizes[place] = 0
    return num_chosen
