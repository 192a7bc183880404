"""Best-fit packing: no document that fits a row is split, rows come from the histogram of lengths alone.

A document of n tokens is ``n div cap`` full pieces, a row each, and a remainder of ``n mod cap`` tokens, where
``cap = S - overhead``. The remainder stands before the j-th full piece, j keyed, so cuts move every epoch and lengths
do not. Remainders and short documents share rows by best-fit decreasing, at most S // 8 a row
(:mod:`pipeline.data.fit`). Which document takes which slot of its size is keyed.

Letters: D documents of a shard, K pieces, R rows, S sequence length, F full pieces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, permutation
from pipeline.data.fit import count_rows as count_run_rows
from pipeline.data.fit import expand, pack
from pipeline.data.pieces import ShardLengths, ShardPlan, make_pieces
from pipeline.data.rows import RowFormat

VERSION = 1


def max_segments(row_format: RowFormat) -> int:
    """Most segments a row: S // 8, so that static `cu_seqlens` stay short."""
    return max(1, row_format.sequence_length // 8)


def _split(lengths: NDArray[np.integer], row_format: RowFormat) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Full pieces and remainder of every document, int64 (D,) each."""
    full, remainder = np.divmod(lengths.astype(np.int64), row_format.sequence_length - row_format.overhead)
    return full, remainder


def _histogram(remainder: NDArray[np.int64], row_format: RowFormat) -> list[int]:
    """Remainders by slots, special tokens included; index 0 .. S."""
    slots = remainder[remainder > 0] + row_format.overhead
    return np.bincount(slots, minlength=row_format.sequence_length + 1).tolist()


def count_rows(shard: ShardLengths, row_format: RowFormat) -> int:
    """R_s of a shard."""
    full, remainder = _split(shard.documents, row_format)
    runs = pack(_histogram(remainder, row_format), row_format.sequence_length, max_segments(row_format))
    return int(full.sum()) + count_run_rows(runs)


def plan(shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: assigns the documents to the slots of their size.
        cuts_key: places the remainder among the full pieces of a long document.
    """
    lengths = shard.documents
    cap = row_format.sequence_length - row_format.overhead
    full, remainder = _split(lengths, row_format)  # (D,), (D,)
    before = (hashes(cuts_key, np.arange(len(lengths))) % (full + 1).astype(np.uint64)).astype(np.int64)  # (D,) j

    long_document = np.repeat(np.arange(len(lengths)), full)  # (F,)
    turn = np.arange(len(long_document)) - np.repeat(np.cumsum(full) - full, full)  # (F,)
    shift = np.where(turn >= before[long_document], remainder[long_document], 0)
    full_pieces = make_pieces(long_document, turn * cap + shift, np.full(len(turn), cap), lengths)

    sizes, counts = expand(
        pack(_histogram(remainder, row_format), row_format.sequence_length, max_segments(row_format))
    )
    slot_sizes = np.array(sizes, np.int64)
    keyed = permutation(documents_key, len(lengths))  # (D,)
    keyed = keyed[remainder[keyed] > 0]
    items = keyed[np.argsort(remainder[keyed], kind="stable")]  # by size, keyed within a size
    document = np.empty(len(items), np.int64)
    document[np.argsort(slot_sizes, kind="stable")] = items
    packed_pieces = make_pieces(document, before[document] * cap, remainder[document], lengths)

    pieces_a_row = np.concatenate([np.ones(len(full_pieces), np.int64), np.array(counts, np.int64)])
    return ShardPlan(
        pieces=np.concatenate([full_pieces, packed_pieces]),
        first_piece=np.concatenate([[0], np.cumsum(pieces_a_row)]),
    )
