"""Which tokens are predicted when words are masked whole: words in random order, each that still fits.

As ``create_masked_lm_predictions`` of google-research/bert does with ``do_whole_word_mask``: words are visited in a
random order, and one that would exceed the number of predictions is skipped.

Letters: S sequence length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.objectives.darts import next_dart, place_of, width_of


@kernel
def measure_words(maskable: NDArray[np.bool_], word_starts: NDArray[np.bool_], sizes: NDArray[np.int64]) -> None:
    """The words of a row: from a start to the next one, or to what cannot be predicted, or to the end of the row.

    Args:
        maskable, word_starts: (S,).
        sizes: filled with the tokens of the word that begins at each place, 0 where none does, (S,).
    """
    begin = -1
    for place in range(len(maskable)):
        sizes[place] = 0
        if not maskable[place]:
            begin = -1
        elif begin < 0 or word_starts[place]:
            begin = place
            sizes[place] = 1
        else:
            sizes[begin] += 1


@kernel
def choose_words(sizes: NDArray[np.int64], num_wanted: int, order_key: np.uint64, places: NDArray[np.int64]) -> int:
    """Whole words of a row in the order in which darts hit their first tokens: ``num_wanted`` tokens, or as many as fit
    without one more word.

    A word of more tokens than are wanted is never chosen.

    Args:
        sizes: from :func:`measure_words`; 0 afterwards where a word was hit, (S,).
        order_key: of the row.
        places: filled with the chosen tokens, (S,).

    Returns:
        how many tokens were chosen.
    """
    width, length = width_of(len(sizes)), len(sizes)
    num_of_size = np.zeros(length + 1, np.int64)  # words that have not been hit
    num_fitting = 0
    for place in range(length):
        num_of_size[sizes[place]] += 1
        num_fitting += 0 < sizes[place] <= num_wanted
    left, num_chosen = num_wanted, 0
    dart, number = np.uint64(0), 0
    while num_fitting > 0:
        dart = next_dart(order_key, number, dart)
        number += 1
        hit = place_of(dart, width)
        size = sizes[hit] if hit < length else 0
        if size == 0:
            continue
        sizes[hit] = 0
        num_of_size[size] -= 1
        if size > left:
            continue
        num_fitting -= 1
        for too_long in range(left - size + 1, left + 1):
            num_fitting -= num_of_size[too_long]
        left -= size
        for token in range(hit, hit + size):
            places[num_chosen] = token
            num_chosen += 1
    return num_chosen
