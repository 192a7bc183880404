"""How a peer is timed, in whatever process it is.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from benchmarks.peers.peer import Peer

_WARMUP_BATCHES: Final = 2


def seconds_a_batch(batches: Iterator[Any], num_batches: int) -> float:
    """Seconds a batch, after the first two: a peer's start is not counted (ours is)."""
    for _ in range(_WARMUP_BATCHES):
        next(batches)
    before = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return (time.perf_counter() - before) / num_batches


def all_rows(peer: Peer) -> np.ndarray:
    """Every row of one epoch as the peer gives it, uint16 (R, S)."""

    def collate(rows: Any) -> dict[str, Any]:
        return {"input_ids": np.stack([np.asarray(row).astype(np.uint16) for row in rows])}

    return np.concatenate([batch["input_ids"] for batch in peer.batches(collate)])
