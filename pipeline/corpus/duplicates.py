"""Exact duplicates over the whole corpus; the first copy in input order stays.

datatrove's exact de-duplication keeps the copy with the lowest number inside its own file, compares 64 bits, and its
outcome among files hangs on their number; here the order of the input alone decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from pipeline.corpus.counters import TaskCounter
from pipeline.corpus.text_store import read_hashes, save_array

_DOCUMENTS_A_BUCKET = 16_000_000  # about 1 GB of memory a bucket


def num_buckets(num_documents: int) -> int:
    """Tasks of the stage: buckets of hashes that fit the memory."""
    return max(1, -(-num_documents // _DOCUMENTS_A_BUCKET))


def repeated(high: NDArray[np.uint64], low: NDArray[np.uint64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the items whose hash occurred before.

    Args:
        high, low: halves of the hashes, (D,).
        numbers: increasing numbers of the items, (D,).
    """
    order = np.lexsort((low, high))  # stable: equal hashes stay in input order
    same = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
    return np.sort(numbers[order[1:][same]])


class DuplicateFinder(PipelineStep):
    """Task ``b`` finds the duplicates among all documents whose text hash falls into bucket ``b``.

    Args:
        first_documents: number of the first document of every task of the first stage, and behind the last.
    """

    type = "dedup"
    name = "exact duplicates"

    def __init__(self, texts: Path, output: Path, first_documents: Sequence[int], counters: Path) -> None:
        super().__init__()
        self.texts = texts
        self.output = output
        self.first_documents = list(first_documents)
        self.counters = counters

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Writes the numbers of the documents to drop; yields none."""
        counter = TaskCounter(self.counters, rank)
        hashes, numbers = [], []
        for task, first in enumerate(self.first_documents[:-1]):
            found = read_hashes(self.texts, task)
            bucket = (found["high"] >> np.uint64(32)) * np.uint64(world_size) >> np.uint64(32)
            chosen = np.flatnonzero(bucket == rank)
            hashes.append(found[chosen])
            numbers.append(chosen + first)
            counter.finish(len(chosen))
        joined = np.concatenate(hashes)
        self.output.mkdir(parents=True, exist_ok=True)
        duplicates = repeated(joined["high"], joined["low"], np.concatenate(numbers))
        save_array(self.output / f"{rank:05d}.npy", duplicates)
        self.stat_update("duplicates", value=len(duplicates))
        yield from ()


def kept_documents(directory: Path | None, begin: int, end: int) -> NDArray[np.int64]:
    """Numbers of the documents ``begin .. end-1`` that are no duplicates, less ``begin``.

    Args:
        directory: output of :class:`DuplicateFinder`, or None if duplicates stay.
    """
    keep = np.ones(end - begin, bool)
    for path in sorted(directory.glob("*.npy")) if directory else ():
        duplicates = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(duplicates, [begin, end])
        keep[duplicates[first:last] - begin] = False
    return np.flatnonzero(keep)
