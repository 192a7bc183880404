"""Concatenation: the documents of a shard end to end in a keyed order, cut at every row.

Between two documents the stream has ``overhead`` slots for the separator (`[SEP][CLS]`, or end-of-text). A row takes
``P`` slots of the stream, where P is S for the GPT kind and S - overhead for the BERT kind, whose every piece becomes a
segment of its own, `[CLS] piece [SEP]`. A separator cut by a row's edge becomes padding at the row's end. The number of
rows is ``R_s = ceil((tokens + overhead * (documents - 1)) / P)``, a closed form of the manifest's counts; no row is
empty.

Letters: D documents of a shard, K pieces, R rows, S sequence length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import permutation
from pipeline.data.pieces import ShardLengths, ShardPlan, make_pieces
from pipeline.data.rows import RowFormat

VERSION = 1


def payload(row_format: RowFormat) -> int:
    """P: slots of the stream a row takes."""
    own_specials = 0 if row_format.end_only_at_document_end else row_format.overhead
    return row_format.sequence_length - own_specials


def num_rows(documents: NDArray[np.int64], tokens: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.int64]:
    """R_s of shards with these counts; same shape as ``documents``."""
    slots = tokens + row_format.overhead * np.maximum(documents - 1, 0)
    return -(-slots // payload(row_format))


def count_rows(shard: ShardLengths, row_format: RowFormat) -> int:
    """R_s of a shard."""
    tokens = shard.documents.sum(dtype=np.int64, keepdims=True)
    return int(num_rows(np.array([len(shard.documents)]), tokens, row_format)[0])


def max_segments(row_format: RowFormat) -> int:
    """No row has more: documents of one token each, `[CLS] token [SEP]` or `token <eos>`, the last without `<eos>`."""
    slots = row_format.sequence_length + (row_format.overhead if row_format.end_only_at_document_end else 0)
    return slots // (1 + row_format.overhead)


def plan(shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: orders the documents; the cuts follow from the order, so ``cuts_key`` is not read.
    """
    del cuts_key
    lengths = shard.documents
    size = payload(row_format)
    order = permutation(documents_key, len(lengths))  # (D,)
    length = lengths[order].astype(np.int64)  # (D,)
    slots = length + row_format.overhead
    begin = np.cumsum(slots) - slots  # (D,) first slot of every document in the stream
    first_row, last_row = begin // size, (begin + length - 1) // size
    num_pieces = last_row - first_row + 1  # (D,)
    which = np.repeat(np.arange(len(order)), num_pieces)  # (K,)
    turn = np.arange(len(which)) - np.repeat(
        np.cumsum(num_pieces) - num_pieces, num_pieces
    )  # (K,) piece of its document
    row = first_row[which] + turn  # (K,)
    offset = np.maximum(row * size - begin[which], 0)
    end = np.minimum((row + 1) * size - begin[which], length[which])
    total = count_rows(shard, row_format)
    return ShardPlan(
        pieces=make_pieces(lengths, (order[which], offset, end - offset)),
        first_piece=np.searchsorted(row, np.arange(total + 1)).astype(np.int64),
    )
