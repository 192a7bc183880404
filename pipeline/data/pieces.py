"""Pieces: which tokens of which document stand in which row of a shard. The common product of all packings.

Letters: D documents of a shard, N sentences, R rows of a shard, K pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PIECE: Final = np.dtype([("item", "<u4"), ("document", "<u4"), ("offset", "<u4"), ("length", "<u2"), ("flags", "<u2")])
"""``length`` tokens of ``document`` (of its shard) from token ``offset``; ``item``, the first one's place in the flat
array over the shard's tar, is filled in by :func:`locate`. 16 bytes: plans of hundreds of shards are kept at a time."""

MAX_ITEMS: Final = 1 << 32
"""Items that a tar may have, so that ``item`` can name them: 8 GiB of uint16 tokens."""

ENDS_DOCUMENT: Final = 1
"""Flag: the piece is the last of its document."""

SECOND_PART: Final = 2
"""Flag: the piece is the second part of the segment that the piece before it begins."""


@dataclass(frozen=True, eq=False)
class ShardLengths:
    """What a packing may look at."""

    documents: NDArray[np.integer]
    """Tokens of every document, (D,)."""

    sentences: NDArray[np.integer] | None = None
    """Tokens of every sentence, document after document, (N,); only for a packing that needs sentences."""

    first_sentence: NDArray[np.integer] | None = None
    """First sentence of every document, then N, (D+1,)."""


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """The rows of one shard in one epoch; every token of the shard is in exactly one piece,
    but for the context with which pieces of a cut document may begin."""

    pieces: NDArray[np.void]
    """Pieces sorted by row, in the order they stand in it, (K,) of :data:`PIECE`."""

    first_piece: NDArray[np.int64]
    """First piece of every row, then K, (R+1,)."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.first_piece) - 1

    @property
    def words(self) -> NDArray[np.uint32]:
        """The pieces as kernels read them, (K, 4): see :func:`as_pieces`."""
        return self.pieces.view(np.uint32).reshape(-1, 4)


def make_pieces(
    document_lengths: NDArray[np.integer],
    *parts: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer] | int],
) -> NDArray[np.void]:
    """Pieces of a shard, (K,), from columns (document, offset, length), part after part.

    Args:
        document_lengths: of the whole shard, (D,).
        parts: columns of equal length, or one length for all.
    """
    pieces = np.zeros(sum(len(document) for document, _, _ in parts), PIECE)
    first = 0
    for document, offset, length in parts:
        part = pieces[first : first + len(document)]
        first += len(document)
        part["document"] = document
        part["offset"] = offset
        part["length"] = length
        part["flags"][offset + length == document_lengths[document]] = ENDS_DOCUMENT
    return pieces


def as_pieces(words: NDArray[np.uint32]) -> NDArray[np.void]:
    """Pieces, (K,), as kernels write them: words of item, document, offset, and length with flags above it, (K, 4)."""
    return words.reshape(-1).view(PIECE)


def has_flag(pieces: NDArray[np.void], flag: int) -> NDArray[np.bool_]:
    """Whether :data:`ENDS_DOCUMENT` or :data:`SECOND_PART` holds for every piece, (K,)."""
    return (pieces["flags"] & np.uint16(flag)) != 0


def is_kept(pieces: NDArray[np.void], excluded: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which pieces stay when documents are excluded, (K,): a pair with an excluded part goes whole.

    Args:
        pieces: of whole rows, (K,) of :data:`PIECE`.
        excluded: documents of the shard, (D,).
    """
    dropped = excluded[pieces["document"]]
    second = np.flatnonzero(has_flag(pieces, SECOND_PART))
    dropped[second] = dropped[second - 1] = dropped[second] | dropped[second - 1]
    return ~dropped
