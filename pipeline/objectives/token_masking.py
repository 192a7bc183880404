"""Which tokens are predicted when each is chosen by itself (BERT, Devlin et al. 2018; RoBERTa, Liu et al. 2019).

Letters: R rows, W width of a row (a power of two), D darts a row.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key
from pipeline.objectives.darts import Choice, throw_darts

_STREAM: Final = 0x4D41534B  # "MASK"


def choose_tokens(
    maskable: NDArray[np.bool_],
    counts: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    seed: int,
    num_darts: int,
) -> Choice:
    """The first maskable tokens that darts hit.

    Args:
        maskable: (R, W).
        counts: how many of each row, at most as many as are maskable, (R,).
        row_numbers: run-wide numbers of the rows, (R,).
    """

    def select(
        rows: NDArray[np.int64], target: NDArray[np.int64], is_hit: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        num_hits = np.cumsum(is_hit, axis=1, dtype=np.int32)  # r D
        wanted = counts[rows].astype(np.int32)  # r
        return is_hit & (num_hits <= wanted[:, None]), num_hits[:, -1] >= wanted

    return throw_darts(maskable, hashes(key(seed, _STREAM), row_numbers), num_darts, select)
