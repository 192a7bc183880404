"""Best-fit packing: no document that fits a row is split, rows come from the histogram of lengths alone.

A document of n tokens is ``n div cap`` full pieces, a row each, and a remainder of ``n mod cap`` tokens, where
``cap = S - overhead``. The remainder stands before the j-th full piece, j keyed, so cuts move every epoch and lengths
do not. Remainders and short documents share rows by best-fit decreasing, at most S // 8 a row
(:mod:`pipeline.data.fit`). Which document takes which slot of its size is keyed.

Letters: D documents of a shard, I items, R rows, S sequence length, F full pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, sorted_by_group
from pipeline.data.fit import Run, expand, pack
from pipeline.data.fit import count_rows as count_run_rows
from pipeline.data.pieces import ShardLengths, ShardPlan, make_pieces
from pipeline.data.rows import RowFormat

VERSION = 2


def max_segments(row_format: RowFormat) -> int:
    """Most segments a row: S // 8, so that static `cu_seqlens` stay short."""
    return max(1, row_format.sequence_length // 8)


class Cut(NamedTuple):
    """Documents cut into full pieces and a remainder each."""

    full_document: NDArray[np.int64]
    """Document of every full piece, in order, (F,)."""

    full_offset: NDArray[np.uint32]
    """Its first token in the document, (F,)."""

    remainder: NDArray[np.uint32]
    """Tokens of every document's remainder, none where it is 0, (D,)."""

    remainder_offset: NDArray[np.uint32]
    """Its first token in the document, (D,)."""


def cut_documents(lengths: NDArray[np.integer], cap: int, cuts_key: int) -> Cut:
    """Cut documents of these lengths, (D,), into full pieces of ``cap`` tokens and a remainder at a keyed place."""
    full, remainder = split_lengths(lengths, cap)
    long = np.flatnonzero(full)
    # A 32-bit hash times the number of places, its high half: a place, without a division.
    hashed = hashes(cuts_key, long) >> np.uint64(32)
    hashed *= full[long] + np.uint64(1)
    before = np.zeros_like(full)  # (D,) full pieces before the remainder
    before[long] = hashed >> np.uint64(32)
    document = np.repeat(long, full[long])  # (F,)
    turn = np.arange(len(document), dtype=np.uint32)  # (F,) which full piece of its document
    turn -= (np.cumsum(full, dtype=np.uint32) - full)[document]
    offset = turn * np.uint32(cap)
    offset += remainder[document] * (turn >= before[document])
    return Cut(document, offset, remainder, before * np.uint32(cap))


def split_lengths(lengths: NDArray[np.integer], cap: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Full pieces and tokens of the remainder of every document, (D,) each."""
    tokens: NDArray[np.uint32] = lengths.astype(np.uint32, copy=False)
    full: NDArray[np.uint32] = tokens // np.uint32(cap)
    return full, tokens - full * np.uint32(cap)


def fit_items(
    slots: NDArray[np.integer], row_format: RowFormat, base_key: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack items into rows.

    Args:
        slots: of every item, special tokens included, 1 .. S, (I,).
        base_key: assigns the items to the places of their size.

    Returns:
        the item at every place, row by row, (I,); items of every row, (R,).
    """
    sizes, counts = expand(_pack(slots, row_format))
    item = np.empty(len(slots), np.int64)
    item[np.argsort(sizes, kind="stable")] = sorted_by_group(base_key, slots)
    return item, counts


def count_fitted_rows(slots: NDArray[np.integer], row_format: RowFormat) -> int:
    """Rows that :func:`fit_items` needs."""
    return count_run_rows(_pack(slots, row_format))


def _pack(slots: NDArray[np.integer], row_format: RowFormat) -> list[Run]:
    histogram = np.bincount(slots, minlength=row_format.sequence_length + 1).tolist()
    return pack(histogram, row_format.sequence_length, max_segments(row_format))


def count_rows(shard: ShardLengths, row_format: RowFormat) -> int:
    """R_s of a shard."""
    full, remainder = split_lengths(shard.documents, row_format.sequence_length - row_format.overhead)
    return int(full.sum()) + count_fitted_rows(remainder[remainder > 0] + row_format.overhead, row_format)


def plan(shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: assigns the documents to the places of their size.
        cuts_key: places the remainder among the full pieces of a long document.
    """
    cap = row_format.sequence_length - row_format.overhead
    cut = cut_documents(shard.documents, cap, cuts_key)
    short = np.flatnonzero(cut.remainder)  # (I,) documents
    item, counts = fit_items(cut.remainder[short] + row_format.overhead, row_format, documents_key)
    document = short[item]
    num_full = len(cut.full_document)
    pieces = make_pieces(
        shard.documents,
        (cut.full_document, cut.full_offset, cap),
        (document, cut.remainder_offset[document], cut.remainder[document]),
    )
    return ShardPlan(pieces, np.concatenate([np.arange(num_full + 1), num_full + np.cumsum(counts)]))
