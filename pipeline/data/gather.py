"""From pieces to rows: tokens copied from the maps, special tokens placed, segments measured.

Letters: R rows, S sequence length, K segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.data.pieces import from_integers
from pipeline.data.rows import RowFormat, Rows


def segment_slots(
    pieces: NDArray[np.void], segment_row: NDArray[np.int64], num_rows: int, row_format: RowFormat
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where the pieces stand in their rows.

    Segments stand side by side from slot 0. The end ids of a row's last segment are left out where the row has no slot
    left for them (concatenation cut a document exactly at its end).

    Args:
        pieces: sorted by row, (K,) of ``pieces.PIECE``; every row has one at least.
        segment_row: row of every piece, (K,).

    Returns:
        start in the row and length, special tokens included, of every segment, (K,) each; whether it has end ids, (K,).
    """
    has_end = np.ones(len(pieces), np.bool_)
    if row_format.end_only_at_document_end:
        has_end = pieces["ends_document"] == 1
    length = pieces["length"].astype(np.int64) + len(row_format.begin_ids) + has_end * len(row_format.end_ids)
    end = np.cumsum(length)
    last = np.searchsorted(segment_row, np.arange(num_rows), side="right") - 1  # (R,) last segment of every row
    before = np.concatenate([[0], end[last[:-1]]])[:num_rows]  # (R,) slots of all rows before
    too_long = last[end[last] - before > row_format.sequence_length]
    start = end - length - before[segment_row]
    length[too_long] -= len(row_format.end_ids)
    has_end[too_long] = False
    return start, length, has_end


def gather_rows(
    pieces_of_rows: Sequence[NDArray[np.int64]],
    tokens_of_rows: Sequence[NDArray[np.unsignedinteger]],
    *,
    row_numbers: NDArray[np.int64],
    epoch: NDArray[np.int64],
    shard: NDArray[np.int64],
    source: NDArray[np.int64],
    first_documents: NDArray[np.int64],
    row_format: RowFormat,
) -> Rows:
    """Build rows.

    Args:
        pieces_of_rows: R arrays made by ``pieces.as_integers``, one row's pieces each.
        tokens_of_rows: R flat token arrays: that of the shard every row comes from.
        row_numbers, epoch, shard, source: of every row, (R,).
        first_documents: documents of the split before every shard, (shards,).
    """
    num_rows, length = len(row_numbers), row_format.sequence_length
    counts = np.array([len(pieces) for pieces in pieces_of_rows], np.int64)
    segment_row = np.repeat(np.arange(num_rows), counts)  # (K,)
    pieces = from_integers(pieces_of_rows)
    start, slots, has_end = segment_slots(pieces, segment_row, num_rows, row_format)

    tokens = np.full(num_rows * length, row_format.pad_id, np.int64)  # (R*S,)
    first_slot = segment_row * length + start  # (K,)
    first_token = (first_slot + len(row_format.begin_ids)).tolist()
    first_item = pieces["item"].tolist()
    num_tokens = pieces["length"].tolist()
    copies = zip(first_token, first_item, num_tokens, strict=True)
    for flat, count in zip(tokens_of_rows, counts.tolist(), strict=True):
        for to, at, size in islice(copies, count):
            tokens[to : to + size] = flat[at : at + size]
    for place, special in enumerate(row_format.begin_ids):
        tokens[first_slot + place] = special
    end_slot = (first_slot + slots)[has_end] - len(row_format.end_ids)
    for place, special in enumerate(row_format.end_ids):
        tokens[end_slot + place] = special
    return Rows(
        tokens=tokens.reshape(num_rows, length),
        row_numbers=row_numbers,
        segment_row=segment_row.astype(np.int32),
        segment_start=start.astype(np.int32),
        segment_length=slots.astype(np.int32),
        document=first_documents[shard[segment_row]] + pieces["document"],
        offset=pieces["offset"].astype(np.int64),
        epoch=epoch,
        shard=shard.astype(np.int32),
        source=source.astype(np.int32),
    )


def split_rows(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Cut rows into consecutive groups of these sizes; arrays are views."""
    ends = np.cumsum(sizes)
    groups = []
    for end, size in zip(ends.tolist(), sizes, strict=True):
        begin = end - size
        first, last = np.searchsorted(rows.segment_row, [begin, end])
        groups.append(
            Rows(
                tokens=rows.tokens[begin:end],
                row_numbers=rows.row_numbers[begin:end],
                segment_row=rows.segment_row[first:last] - np.int32(begin),
                segment_start=rows.segment_start[first:last],
                segment_length=rows.segment_length[first:last],
                document=rows.document[first:last],
                offset=rows.offset[first:last],
                epoch=rows.epoch[begin:end],
                shard=rows.shard[begin:end],
                source=rows.source[begin:end],
            )
        )
    return groups
