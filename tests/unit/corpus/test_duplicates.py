"""Exact duplicates: the first in input order stays, whatever the buckets."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.counters import make_counters
from pipeline.corpus.duplicates import DuplicateFinder, kept_documents, num_buckets, repeated
from pipeline.corpus.text_store import TEXT_HASH


def reference(hashes: np.ndarray) -> list[int]:
    """Slow truth: a set of what was seen."""
    seen: set[tuple[int, int]] = set()
    found = []
    for number, (high, low) in enumerate(hashes.tolist()):
        if (high, low) in seen:
            found.append(number)
        seen.add((high, low))
    return found


def random_hashes(generator: np.random.Generator, count: int, different: int) -> np.ndarray:
    pool = np.zeros(different, TEXT_HASH)
    pool["high"] = generator.integers(0, 2**64, different, dtype=np.uint64)
    pool["high"][: different // 2] = pool["high"][0]  # equal in one half only
    pool["low"] = generator.integers(0, 2**64, different, dtype=np.uint64)
    return pool[generator.integers(0, different, count)]


def test_equals_the_slow_reference() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        hashes = random_hashes(generator, int(generator.integers(1, 300)), int(generator.integers(1, 200)))
        numbers = np.arange(len(hashes))
        assert repeated(hashes["high"], hashes["low"], numbers).tolist() == reference(hashes)


@pytest.mark.parametrize("buckets", [1, 2, 5])
def test_buckets_and_tasks_do_not_matter(tmp_path: Path, buckets: int) -> None:
    hashes = random_hashes(np.random.default_rng(1), 500, 180)
    firsts = [0, 120, 120, 400, 500]
    for task, (begin, end) in enumerate(itertools.pairwise(firsts)):
        np.save(tmp_path / f"{task:05d}.hashes.npy", hashes[begin:end])
    make_counters(tmp_path / "counters", buckets)
    step = DuplicateFinder(tmp_path, tmp_path / "out", firsts, tmp_path / "counters")
    for bucket in range(buckets):
        assert list(step.run(rank=bucket, world_size=buckets)) == []
    kept = [kept_documents(tmp_path / "out", begin, end) + begin for begin, end in itertools.pairwise(firsts)]
    assert np.concatenate(kept).tolist() == sorted(set(range(500)) - set(reference(hashes)))
    assert int(np.fromfile(tmp_path / "counters", np.int64).sum()) == 500


def test_without_deduplication_everything_is_kept() -> None:
    assert kept_documents(None, 5, 8).tolist() == [0, 1, 2]


def test_buckets_come_from_the_documents() -> None:
    assert [num_buckets(count) for count in (0, 1, 16_000_000, 16_000_001, 10**8)] == [1, 1, 1, 2, 7]
