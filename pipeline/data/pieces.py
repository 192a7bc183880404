"""Pieces: which tokens of which document stand in which row of a shard. The common product of all packings.

Letters: R rows of a shard, K pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PIECE: Final = np.dtype(
    [("item", "<i8"), ("document", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("ends_document", "<u4")]
)
"""``length`` tokens of ``document`` (of its shard) from token ``offset``; ``item`` is the first one's place in the flat
array over the shard's tar, filled in when the plan meets its index; ``ends_document`` is 1 for the last piece."""


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """The rows of one shard in one epoch; every token of the shard is in exactly one piece."""

    pieces: NDArray[np.void]
    """Pieces sorted by row, in the order they stand in it, (K,) of :data:`PIECE`."""

    first_piece: NDArray[np.int64]
    """First piece of every row, then K, (R+1,)."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.first_piece) - 1


def make_pieces(
    document: NDArray[np.integer],
    offset: NDArray[np.integer],
    length: NDArray[np.integer],
    document_lengths: NDArray[np.integer],
) -> NDArray[np.void]:
    """Columns (K,) to pieces (K,); ``document_lengths`` is that of the whole shard."""
    pieces = np.zeros(len(document), PIECE)
    pieces["document"] = document
    pieces["offset"] = offset
    pieces["length"] = length
    pieces["ends_document"] = offset + length == document_lengths[document]
    return pieces


def as_integers(pieces: NDArray[np.void]) -> NDArray[np.int64]:
    """The bytes of pieces (K,) as int64 (K, 3): NumPy joins many small arrays of plain numbers far faster."""
    return pieces.view(np.int64).reshape(-1, PIECE.itemsize // 8)


def from_integers(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.void]:
    """Joins what :func:`as_integers` made, (K,) of :data:`PIECE`."""
    joined = np.concatenate([np.zeros((0, PIECE.itemsize // 8), np.int64), *parts])
    return joined.reshape(-1).view(PIECE)
