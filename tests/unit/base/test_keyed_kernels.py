"""The compiled hash gives the numbers of the plain one, for scalars of any integer type and inside loops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.keyed import hashes, key, mix, permutation
from pipeline.base.keyed_kernels import hash_u64, mix_u64, permutation_of


@kernel
def _hash_all(base_key: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    found = np.empty(len(indices), np.uint64)
    for place in range(len(indices)):
        found[place] = hash_u64(np.uint64(base_key), np.uint64(indices[place]))
    return found


def test_scalars_equal_the_plain_functions() -> None:
    random = np.random.default_rng(0)
    for value in [0, 1, (1 << 64) - 1, *random.integers(0, 1 << 63, 200).tolist()]:
        assert int(mix_u64(np.uint64(value))) == mix(value)
        base = key(7, value)
        assert int(hash_u64(np.uint64(base), np.uint64(value))) == int(hashes(base, np.array([value], np.uint64))[0])


def test_arrays_equal_the_plain_function() -> None:
    indices = np.concatenate([np.arange(1000), [1 << 40, (1 << 62) + 3, -1]])
    for base in (key(1), key(5, 9), (1 << 64) - 1, 0):
        np.testing.assert_array_equal(_hash_all(np.uint64(base), indices), hashes(base, indices))


def test_permutations_equal_the_plain_ones() -> None:
    random = np.random.default_rng(1)
    for n in [0, 1, 2, 3, 15, 16, 17, 4096, 100_000, *random.integers(1, 3000, 200).tolist()]:
        base = key(n, 3)
        np.testing.assert_array_equal(permutation_of(np.uint64(base), n), permutation(base, n))
