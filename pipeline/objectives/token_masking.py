"""Which tokens are predicted when each is chosen by itself (BERT, Devlin et al. 2018; RoBERTa, Liu et al. 2019).

Letters: S sequence length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.objectives.darts import fate_of, next_dart, place_of, width_of


@kernel
def choose_tokens(
    maskable: NDArray[np.bool_],
    num_wanted: int,
    order_key: np.uint64,
    places: NDArray[np.int64],
    fates: NDArray[np.int64],
) -> int:
    """The first maskable tokens of a row that darts hit.

    Args:
        maskable: (S,); false afterwards where a token was chosen.
        num_wanted: how many, at most as many as are maskable.
        order_key: of the row.
        places: filled with the chosen places, (S,).
        fates: filled with 16 uniform bits for each, (S,).

    Returns:
        ``num_wanted``.
    """
    width = width_of(len(maskable))
    dart, number, num_chosen = np.uint64(0), 0, 0
    while num_chosen < num_wanted:
        dart = next_dart(order_key, number, dart)
        number += 1
        place = place_of(dart, width)
        if place < len(maskable) and maskable[place]:
            maskable[place] = False
            places[num_chosen] = place
            fates[num_chosen] = fate_of(dart)
            num_chosen += 1
    return num_chosen
