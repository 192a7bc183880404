"""One document a row: a document longer than the row is cut into pieces as in best fit, a row each.

Letters: D documents of a shard, S sequence length.
"""

from __future__ import annotations

import numpy as np

from pipeline.data.best_fit import count_cuts, cut_documents
from pipeline.data.pieces import ShardLengths, ShardPlan, as_pieces
from pipeline.data.rows import RowFormat

VERSION = 1


def max_segments(row_format: RowFormat) -> int:
    """Always 1."""
    del row_format
    return 1


def count_rows(shard: ShardLengths, row_format: RowFormat) -> int:
    """R_s of a shard: ``ceil(n / (S - overhead))`` for a document of n tokens, more where pieces have a context."""
    cap = row_format.sequence_length - row_format.overhead
    return sum(count_cuts(np.array(shard.documents, np.uint32), cap, row_format.context_tokens))


def plan(shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: not read, since no two documents share a row; the order of rows is keyed later.
        cuts_key: places the remainder among the full pieces of a long document.
    """
    del documents_key
    cap = row_format.sequence_length - row_format.overhead
    pieces, _ = cut_documents(np.array(shard.documents, np.uint32), cap, row_format.context_tokens, np.uint64(cuts_key))
    return ShardPlan(as_pieces(pieces), first_piece=np.arange(len(pieces) + 1))
