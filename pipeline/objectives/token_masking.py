"""Which tokens are predicted when each is chosen by itself: darts thrown at a row until enough have hit.

Letters: R rows, S sequence length, W the power of two not below S, D darts a row, P predictions.

Dart i of a row is ``hash(row key, i)``; its low bits are a place among W. A dart hits if a maskable token stands there
that no earlier dart has hit, and the first ``count`` hits are the choice. So all subsets of ``count`` maskable tokens
are equally likely, as with the smallest of one hash a token; but this hashes about a fifth as many values (a rate of
0.15 needs 0.16 * W darts) and sorts nothing, and sorting is fast only on CPUs for which NumPy has vector code.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.objectives.choice import Choice

_DART_STREAM: Final = 0x4D41534B  # "MASK"


def choose_tokens(
    maskable: NDArray[np.bool_], counts: NDArray[np.int64], row_numbers: NDArray[np.int64], seed: int, rate: float
) -> Choice:
    """Choose tokens.

    Args:
        maskable: (R, S).
        counts: how many of each row, at most as many as are maskable, (R,).
        row_numbers: run-wide numbers of the rows, (R,).
        rate: about counts over maskable tokens; it changes the time that is needed, never the choice.
    """
    length = maskable.shape[1]
    width = 1 << (length - 1).bit_length()
    if width > length:
        maskable = np.pad(maskable, ((0, 0), (0, width - length)))  # R W
    row_keys = hashes(key(seed, _DART_STREAM), row_numbers)  # R
    indices, darts = _throw(maskable, counts, row_keys, _usual_num_darts(width, rate))
    if width > length:
        indices -= indices // width * (width - length)
    return Choice(indices, darts, darts)


def _usual_num_darts(width: int, rate: float) -> int:
    """Darts that suffice for nearly every row: ``n`` of them leave a place untouched with probability exp(-n / W)."""
    expected = -width * math.log1p(-min(rate, 0.98))
    return math.ceil(expected + 2 * math.sqrt(expected)) + 1


def _throw(
    maskable: NDArray[np.bool_], counts: NDArray[np.int64], row_keys: NDArray[np.uint64], num_darts: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Flat indices of what was hit, row after row, and the darts that hit, (P,) each."""
    num_rows, width = maskable.shape
    darts = hashes(row_keys[:, None], np.arange(num_darts))  # R D
    first_place = np.arange(num_rows)[:, None] * width  # R 1
    target = ((darts & np.uint64(width - 1)).view(np.int64) + first_place).ravel()  # R*D
    number = np.arange(target.size, dtype=np.int32)  # R*D
    # Of the darts at one place any may be written last, so those that were overwritten are compared with it.
    first_dart = np.empty(maskable.size, np.int32)  # R*W
    first_dart[target] = number
    others = np.flatnonzero(first_dart.take(target) != number)
    np.minimum.at(first_dart, target[others], number[others])
    is_hit = (first_dart.take(target) == number) & maskable.ravel().take(target)  # R*D
    num_hits = np.cumsum(is_hit.reshape(num_rows, num_darts), axis=1, dtype=np.int32)  # R D
    is_done = num_hits[:, -1] >= counts  # R
    is_chosen = is_hit & (num_hits <= np.where(is_done, counts, 0)[:, None]).ravel()  # R*D
    chosen = np.flatnonzero(is_chosen)  # P
    indices, hitting = target.take(chosen), darts.ravel().take(chosen)
    if is_done.all():
        return indices, hitting
    # Chance, or a row of few maskable tokens: the same darts again and as many more.
    late = np.flatnonzero(~is_done)
    late_indices, late_hitting = _throw(maskable[late], counts[late], row_keys[late], 2 * num_darts)
    late_indices += (late[late_indices // width] - late_indices // width) * width
    indices, hitting = np.concatenate([indices, late_indices]), np.concatenate([hitting, late_hitting])
    by_row = np.argsort(indices // width, kind="stable")
    return indices[by_row], hitting[by_row]
