"""Randomness without a generator: an integer hash of named keys (no state, any order, any process).

``mix`` is the splitmix64 finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
All arithmetic is modulo 2**64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_GOLDEN: Final = 0x9E3779B97F4A7C15
_M1: Final = 0xBF58476D1CE4E5B9
_M2: Final = 0x94D049BB133111EB
_MASK: Final = (1 << 64) - 1
_INDEX_BITS: Final = 24
MAX_PERMUTATION: Final = 1 << _INDEX_BITS
"""Largest ``n`` of :func:`permutation`: the index is kept in the low 24 bits of its sort key."""


def mix(value: int) -> int:
    """splitmix64's finaliser of one integer."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _M1) & _MASK
    value = ((value ^ (value >> 27)) * _M2) & _MASK
    return value ^ (value >> 31)


def key(*parts: int) -> int:
    """Fold integers into one 64-bit key; the order of the parts counts."""
    folded = 0
    for part in parts:
        folded = mix(folded + _GOLDEN + (part & _MASK))
    return folded


def mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """:func:`mix`, element by element."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(_M1)
    values ^= values >> np.uint64(27)
    values *= np.uint64(_M2)
    values ^= values >> np.uint64(31)
    return values


def hashes(base_key: int | NDArray[np.uint64], indices: NDArray[np.integer]) -> NDArray[np.uint64]:
    """64-bit hash of every index under ``base_key``, or under an array of keys; both are broadcast."""
    return mix_array(np.asarray(base_key, np.uint64) + indices.astype(np.uint64) * np.uint64(_GOLDEN))


def permutation(base_key: int, n: int) -> NDArray[np.int64]:
    """A keyed permutation of ``0 .. n-1``: the sort of hashes whose low 24 bits are the index.

    The sort keys are unique, so every sorting algorithm (SIMD or not) gives the same result.

    Raises:
        ValueError: ``n`` exceeds :data:`MAX_PERMUTATION`.
    """
    if n > MAX_PERMUTATION:
        raise ValueError(f"a permutation of {n} items was asked for; at most {MAX_PERMUTATION} fit 24-bit keys")
    index = np.arange(n, dtype=np.uint64)
    low_bits = np.uint64(MAX_PERMUTATION - 1)
    keys = (hashes(base_key, index) & ~low_bits) | index
    keys.sort()
    return (keys & low_bits).astype(np.int64)


def sorted_by_group(base_key: int, groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """The indices ``0 .. n-1`` by group, in a keyed order within every group: one sort of (group, hash, index).

    Args:
        groups: below 2**16, (n,).

    Raises:
        ValueError: ``n`` exceeds :data:`MAX_PERMUTATION`.
    """
    if len(groups) > MAX_PERMUTATION:
        raise ValueError(f"{len(groups)} items were to be ordered; at most {MAX_PERMUTATION} fit 24-bit keys")
    index = np.arange(len(groups), dtype=np.uint64)
    keys = hashes(base_key, index)
    keys >>= np.uint64(64 - _INDEX_BITS)
    keys |= groups.astype(np.uint64) << np.uint64(_INDEX_BITS)
    keys <<= np.uint64(_INDEX_BITS)
    keys |= index
    keys.sort()
    keys &= np.uint64(MAX_PERMUTATION - 1)
    return keys.view(np.int64)
