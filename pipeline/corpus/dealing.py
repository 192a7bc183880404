"""Which document goes where: splits and shards from hashes of the ids, so that every shard is a fair sample.

Pure functions. Letters: D documents, N shards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def in_validation(split_keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """The documents whose hash lies in the lowest ``share`` of all hashes, (D,)."""
    return (split_keys >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share


def with_both_splits(split_keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """As :func:`in_validation`, but neither split is empty where there are two documents and ``share`` is above 0."""
    chosen = in_validation(split_keys, share)
    if share > 0 and len(chosen) >= 2:
        if not chosen.any():
            chosen[np.argmin(split_keys)] = True
        elif chosen.all():
            chosen[np.argmax(split_keys)] = False
    return chosen


def shard_numbers(tokens: NDArray[np.int64], most_tokens: int, most_documents: int) -> NDArray[np.int64]:
    """Cut a sequence of documents into the fewest shards of about equal size.

    A document takes the larger one of its shares of the two limits; shard ends are spread evenly over the sum. So a
    shard passes a limit by its last document at most.

    Args:
        tokens: tokens of every document in order, (D,).

    Returns:
        shard of every document, not decreasing from 0 without gaps, (D,).
    """
    weights = np.maximum(tokens * most_documents, most_tokens)  # in units of 1 / (most_tokens * most_documents)
    before = np.cumsum(weights) - weights
    num_shards = -(-int(weights.sum()) // (most_tokens * most_documents))
    bounds = [int(weights.sum()) * shard // num_shards for shard in range(1, num_shards)]
    numbers = np.searchsorted(np.array(bounds, np.int64), before, side="right")
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def evenly_spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of ``0 .. count-1``, evenly spread, increasing."""
    chosen = min(count, most)
    return np.arange(chosen, dtype=np.int64) * count // max(1, chosen)


def unigram_entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution of tokens: ``-sum p ln p`` (0 for no tokens)."""
    total = int(counts.sum())
    shares = counts[counts > 0] / max(1, total)
    return round(float(-(shares * np.log(shares)).sum()) + 0.0, 9)
