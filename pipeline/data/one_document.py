"""One document a row: a document longer than the row is cut into pieces as in best fit, a row each.

Letters: D documents of a shard, S sequence length.
"""

from __future__ import annotations

import numpy as np

from pipeline.data.best_fit import cut_documents, split_lengths
from pipeline.data.pieces import ShardLengths, ShardPlan, make_pieces
from pipeline.data.rows import RowFormat

VERSION = 1


def max_segments(row_format: RowFormat) -> int:
    """Always 1."""
    del row_format
    return 1


def count_rows(shard: ShardLengths, row_format: RowFormat) -> int:
    """R_s of a shard: ``ceil(n / (S - overhead))`` for a document of n tokens."""
    full, remainder = split_lengths(shard.documents, row_format.sequence_length - row_format.overhead)
    return int(full.sum()) + int(np.count_nonzero(remainder))


def plan(shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: not read, since no two documents share a row; the order of rows is keyed later.
        cuts_key: places the remainder among the full pieces of a long document.
    """
    del documents_key
    cap = row_format.sequence_length - row_format.overhead
    cut = cut_documents(shard.documents, cap, cuts_key)
    short = np.flatnonzero(cut.remainder)
    pieces = make_pieces(
        shard.documents,
        (cut.full_document, cut.full_offset, cap),
        (short, cut.remainder_offset[short], cut.remainder[short]),
    )
    return ShardPlan(pieces, first_piece=np.arange(len(pieces) + 1))
