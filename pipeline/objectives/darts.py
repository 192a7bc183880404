"""Which units of a row are predicted, drawn in random order without a generator: darts thrown until enough have hit.

Letters: W width of a row (a power of two).

Dart i of a row is 32 bits of ``hash(row key, i // 2)``, the lower half for even i. Its low bits name a place among W,
its high 16 bits are a fate. A dart hits if a unit (a token, a word, a span) begins at its place and no earlier dart hit
it. So units are visited in an order that makes all orders equally likely, as by sorting one hash a unit; but a rate of
0.15 needs about 0.16 W darts, two a hash, and nothing is sorted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.base.jit import kernel
from pipeline.base.keyed_kernels import hash_u64

_HALF_BITS: Final = np.uint64(32)
_FATE_SHIFT: Final = np.uint64(16)
_FATE_MASK: Final = np.uint64(0xFFFF)


@kernel
def width_of(length: int) -> int:
    """W: the power of two not below ``length``."""
    width = 1
    while width < length:
        width *= 2
    return width


@kernel
def next_dart(row_key: np.uint64, number: int, last: np.uint64) -> np.uint64:
    """Dart ``number`` in its low 32 bits; ``last`` is what this returned for the one before."""
    return last >> _HALF_BITS if number & 1 else hash_u64(row_key, np.uint64(number >> 1))


@kernel
def place_of(dart: np.uint64, width: int) -> np.int64:
    """The place among W that a dart hits."""
    return np.int64(dart & np.uint64(width - 1))


@kernel
def fate_of(dart: np.uint64) -> np.int64:
    """16 uniform bits."""
    return np.int64((dart >> _FATE_SHIFT) & _FATE_MASK)
