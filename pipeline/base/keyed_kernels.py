"""The integer hash of :mod:`pipeline.base.keyed`, to be called from other kernels, a number at a time."""

from __future__ import annotations

from typing import Final

import numpy as np

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
