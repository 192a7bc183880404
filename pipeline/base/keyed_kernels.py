"""The integer hash of :mod:`pipeline.base.keyed`, to be called from other kernels, a number at a time."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)


@kernel
def mix_u64(value: np.uint64) -> np.uint64:
    """``keyed.mix``: splitmix64's finaliser of one integer."""
    value = np.uint64(value)
    value = (value ^ (value >> np.uint64(30))) * _M1
    value = (value ^ (value >> np.uint64(27))) * _M2
    return value ^ (value >> np.uint64(31))


@kernel
def hash_u64(base_key: np.uint64, index: np.uint64) -> np.uint64:
    """``keyed.hashes``: 64-bit hash of one index under a key; both are taken modulo 2**64."""
    return mix_u64(np.uint64(base_key) + np.uint64(index) * _GOLDEN)


@kernel
def permutation_of(base_key: np.uint64, n: int) -> NDArray[np.int64]:
    """``keyed.permutation`` for ``n`` up to ``keyed.MAX_PERMUTATION``: the hashes are dealt into buckets by their top
    bits, a few to each, and every bucket is sorted by itself."""
    bits = 0
    while bits < 22 and (4 << bits) < n:
        bits += 1
    low_bits = np.uint64((1 << 24) - 1)
    keys, dealt = np.empty(n, np.uint64), np.empty(n, np.uint64)
    border = np.zeros((1 << bits) + 1, np.int64)
    for index in range(n):
        keys[index] = (hash_u64(base_key, np.uint64(index)) & ~low_bits) | np.uint64(index)
        border[_top(keys[index], bits) + 1] += 1
    for bucket in range(1 << bits):
        border[bucket + 1] += border[bucket]
    first = border.copy()
    for index in range(n):
        own = _top(keys[index], bits)
        place = border[own]
        # What is dealt already stands in order: the new one is moved down to its place.
        while place > first[own] and dealt[place - 1] > keys[index]:
            dealt[place] = dealt[place - 1]
            place -= 1
        dealt[place] = keys[index]
        border[own] += 1
    found = np.empty(n, np.int64)
    for index in range(n):
        found[index] = np.int64(dealt[index] & low_bits)
    return found


@kernel
def _top(value: np.uint64, bits: int) -> np.int64:
    return np.int64((value >> np.uint64(1)) >> np.uint64(63 - bits))


hash_u64(np.uint64(0), np.uint64(0))
# The first compiled call of a process loads the rest of numba, which takes as long as importing it: both happen here,
# so that the first batch does not wait for it.
