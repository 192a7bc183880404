"""Best-fit packing alone: a shard's plan from its lengths, beside a plain best fit that takes one document at a time.

Letters: D documents, S sequence length.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import SEQUENCE_LENGTH
from benchmarks.machine import interleaved, medians
from benchmarks.record import Goal, Result
from pipeline.data.packing import find_packing
from pipeline.data.pieces import ShardLengths
from pipeline.data.rows import RowFormat

_FORMAT = RowFormat(SEQUENCE_LENGTH, begin_ids=(101,), end_ids=(102,), pad_id=0, end_only_at_document_end=False)
_MEAN_TOKENS = 600


def wikipedia_like_lengths(num_documents: int) -> NDArray[np.uint32]:
    """Log-normal with a standard deviation of 1 of the logarithm, (D,)."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(_MEAN_TOKENS) - 0.5, 1.0, num_documents)
    return np.maximum(1, lengths).astype(np.uint32)


def measure_packing(repetitions: int) -> list[Result]:
    """Documents a second of a whole plan (cuts, fit, keyed assignment, pieces), and the fill of its rows."""
    best_fit = find_packing("best_fit")
    results = []
    for num_documents in (65_536, 10_000):
        lengths = wikipedia_like_lengths(num_documents)
        shard = ShardLengths(lengths)
        plan = best_fit.plan(shard, _FORMAT, 1, 2)
        if plan.num_rows != rows_one_by_one(lengths):
            raise ValueError("the two best fits need different numbers of rows")

        def ours(shard: ShardLengths = shard) -> None:
            best_fit.plan(shard, _FORMAT, 1, 2)

        def one_by_one(lengths: NDArray[np.uint32] = lengths) -> None:
            rows_one_by_one(lengths)

        contenders = {"ours": _rate(ours, num_documents, 10), "one by one": _rate(one_by_one, num_documents, 1)}
        found = medians(interleaved(contenders, repetitions, "million documents/s"))
        name = f"best fit, {num_documents:,} documents a shard"
        peers = {"best fit, a document at a time": found["one by one"]}
        goal = Goal(ours=5.0) if num_documents > 10_000 else Goal()
        results.append(Result(f"{name}: speed", "million documents/s", "higher", found["ours"], peers, goal))
        slots = int(lengths.sum()) + _FORMAT.overhead * len(plan.pieces)
        fill = 100 * slots / (plan.num_rows * SEQUENCE_LENGTH)
        results.append(Result(f"{name}: filled slots", "% of slots", "higher", fill, goal=Goal(ours=99.9)))
    return results


def _rate(function: Callable[[], None], num_documents: int, times: int) -> Callable[[], float]:
    def million_a_second() -> float:
        before = time.perf_counter()
        for _ in range(times):
            function()
        return times * num_documents / (time.perf_counter() - before) / 1e6

    return million_a_second


def rows_one_by_one(lengths: NDArray[np.uint32]) -> int:
    """Rows that best-fit decreasing needs, an item at a time: rows by room in a sorted list."""
    cap = SEQUENCE_LENGTH - _FORMAT.overhead
    remainder = lengths % cap
    rooms: list[int] = []
    num_rows = int((lengths // cap).sum())
    for slots in np.sort(remainder[remainder > 0] + _FORMAT.overhead)[::-1].tolist():
        place = bisect_left(rooms, slots)
        if place == len(rooms):
            num_rows += 1
            left = SEQUENCE_LENGTH - slots
        else:
            left = rooms.pop(place) - slots
        if left:
            insort(rooms, left)
    return num_rows
