"""From pieces to rows: tokens copied from the maps, special tokens placed, segments measured.

Letters: R rows, S sequence length, P pieces, K segments, C shards that rows come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.data.pieces import ENDS_DOCUMENT, SECOND_PART, has_flag
from pipeline.data.rows import NO_PAIR, PER_ROW, PER_SEGMENT, RowFormat, Rows

WordStarts = Callable[[int, int], NDArray[np.bool_]]
"""``Shard.word_starts``: of (first item, number of tokens), whether each of them begins a word."""

FILLER: Final = -1
"""Row number of a filler row."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Where pieces stand. A segment is a piece, or the two parts of a pair, with its special tokens."""

    first_token: NDArray[np.int64]
    """Slot in its row of every piece's first token, (P,)."""

    is_second: NDArray[np.bool_]
    """Whether the piece is the second part of a pair, (P,)."""

    has_end: NDArray[np.bool_]
    """Whether the piece is followed by the segment's end ids, (P,)."""

    first_piece: NDArray[np.int64]
    """First piece of every segment, (K,)."""

    start: NDArray[np.int64]
    """First slot of every segment in its row, (K,)."""

    length: NDArray[np.int64]
    """Slots of every segment, special tokens included, (K,)."""


def place_pieces(pieces: NDArray[np.void], row: NDArray[np.int64], num_rows: int, row_format: RowFormat) -> Slots:
    """Where pieces stand in their rows.

    Segments stand side by side from slot 0. The end ids of a row's last segment are left out where the row has no slot
    left for them (concatenation cut a document exactly at its end).

    Args:
        pieces: sorted by row, (P,) of ``pieces.PIECE``; a row may have none.
        row: row of every piece, (P,).
    """
    num_begin, num_middle, num_end = (
        len(ids) for ids in (row_format.begin_ids, row_format.middle_ids, row_format.end_ids)
    )
    is_second = has_flag(pieces, SECOND_PART)
    has_end = np.ones(len(pieces), np.bool_)
    has_end[:-1] = ~is_second[1:]
    if row_format.end_only_at_document_end:
        has_end &= has_flag(pieces, ENDS_DOCUMENT)
    before = np.where(is_second, num_middle, num_begin)
    slots = pieces["length"].astype(np.int64) + before + has_end * num_end  # (P,)
    end = np.cumsum(slots)
    border = np.searchsorted(row, np.arange(num_rows + 1))  # (R+1,) first piece of every row
    slots_before = np.concatenate([[0], end])[border]  # (R+1,) of all rows before
    too_long = border[1:][np.diff(slots_before) > row_format.sequence_length] - 1
    start = end - slots - slots_before[row]  # (P,)
    slots[too_long] -= num_end
    has_end[too_long] = False
    first_piece = np.flatnonzero(~is_second)
    return Slots(
        first_token=start + before,
        is_second=is_second,
        has_end=has_end,
        first_piece=first_piece,
        start=start[first_piece],
        length=np.add.reduceat(slots, first_piece) if len(first_piece) else np.zeros(0, np.int64),
    )


def gather_rows(
    pieces: NDArray[np.void],
    counts: NDArray[np.int64],
    maps: Sequence[NDArray[np.unsignedinteger]],
    map_of_row: NDArray[np.int64],
    *,
    row_numbers: NDArray[np.int64],
    epoch: NDArray[np.int64],
    shard: NDArray[np.int64],
    source: NDArray[np.int64],
    first_document: NDArray[np.int64],
    row_format: RowFormat,
    word_starts: Sequence[WordStarts] | None = None,
) -> Rows:
    """Build rows.

    Args:
        pieces: row after row, (P,) of ``pieces.PIECE``.
        counts: pieces of every row, (R,); a row without any is padding.
        maps: flat token arrays of the C shards that rows come from.
        map_of_row: which of them every row comes from, (R,).
        row_numbers, epoch, shard, source: of every row, (R,).
        first_document: documents of the split before the shard of every row, (R,).
        word_starts: the methods of that name of the C shards; given, ``Rows.word_starts`` is filled.
    """
    num_rows, length = len(row_numbers), row_format.sequence_length
    row = np.repeat(np.arange(num_rows), counts)  # (P,)
    slots = place_pieces(pieces, row, num_rows, row_format)

    map_of_piece = map_of_row[row].tolist()
    first_token = row * length + slots.first_token  # (P,)
    tokens = _copy_tokens(pieces, first_token, maps, map_of_piece, num_rows * length, row_format.pad_id)
    specials = _special_slots(pieces, first_token, slots, row_format)
    for place, special in specials:
        tokens[place] = special
    words = None
    if word_starts is not None:
        words = _copy_words(pieces, first_token, word_starts, map_of_piece, num_rows * length)
        for place in (first_token, *(place for place, _ in specials)):
            words[place] = True

    first = slots.first_piece
    segment_row = row[first]
    return Rows(
        tokens=tokens.reshape(num_rows, length),
        row_numbers=row_numbers,
        segment_row=segment_row.astype(np.int32),
        segment_start=slots.start.astype(np.int32),
        segment_length=slots.length.astype(np.int32),
        document=first_document[segment_row] + pieces["document"][first],
        offset=pieces["offset"][first].astype(np.int64),
        epoch=epoch,
        shard=shard.astype(np.int32),
        source=source.astype(np.int32),
        word_starts=None if words is None else words.reshape(num_rows, length),
        **(_pairs(pieces, slots, first_document[segment_row]) if row_format.middle_ids else {}),
    )


def _copy_tokens(
    pieces: NDArray[np.void],
    first_token: NDArray[np.int64],
    maps: Sequence[NDArray[np.unsignedinteger]],
    map_of_piece: list[int],
    num_slots: int,
    pad_id: int,
) -> NDArray[np.unsignedinteger]:
    """Flat rows with padding wherever no piece stands, (R*S,) of the maps' dtype.

    ``join`` copies the views of all pieces, and views of padding for the gaps between them, in one pass over memory,
    several times faster than an assignment of slices a piece.
    """
    dtypes = {flat.dtype for flat in maps}
    if len(dtypes) > 1:
        raise ValueError(f"rows of shards with different token types: {sorted(map(str, dtypes))}")
    dtype = dtypes.pop() if dtypes else np.dtype(np.uint16)
    item, length = pieces["item"].astype(np.int64), pieces["length"].astype(np.int64)
    gap = np.append(first_token, num_slots)  # (P+1,) slots before every piece, and behind the last
    gap[1:] -= first_token + length
    padding = np.full(int(gap.max()), pad_id, dtype).data
    gaps = gap.tolist()
    padding_of = {size: padding[:size] for size in set(gaps)}
    views = map([flat.data for flat in maps].__getitem__, map_of_piece)
    parts: list[memoryview] = [padding] * (2 * len(pieces) + 1)
    parts[0::2] = map(padding_of.__getitem__, gaps)
    parts[1::2] = map(memoryview.__getitem__, views, map(slice, item.tolist(), (item + length).tolist()))
    return np.frombuffer(bytearray().join(parts), dtype)


def _copy_words(
    pieces: NDArray[np.void],
    first_token: NDArray[np.int64],
    word_starts: Sequence[WordStarts],
    map_of_piece: list[int],
    num_slots: int,
) -> NDArray[np.bool_]:
    """Where the tokens of pieces begin words, (R*S,)."""
    words = np.zeros(num_slots, np.bool_)
    columns = (first_token.tolist(), pieces["item"].tolist(), pieces["length"].tolist(), map_of_piece)
    for to, item, length, number in zip(*columns, strict=True):
        words[to : to + length] = word_starts[number](item, length)
    return words


def _special_slots(
    pieces: NDArray[np.void], first_token: NDArray[np.int64], slots: Slots, row_format: RowFormat
) -> list[tuple[NDArray[np.int64], int]]:
    """Places in the flat rows that hold a special token, and which."""
    after = first_token + pieces["length"]  # (P,)
    begin = first_token[~slots.is_second] - len(row_format.begin_ids)
    middle = first_token[slots.is_second] - len(row_format.middle_ids)
    runs = ((begin, row_format.begin_ids), (middle, row_format.middle_ids), (after[slots.has_end], row_format.end_ids))
    return [(first + place, special) for first, ids in runs for place, special in enumerate(ids)]


def _pairs(pieces: NDArray[np.void], slots: Slots, first_document: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The fields of :class:`Rows` that only pairs have; ``first_document`` of every segment, (K,)."""
    first = slots.first_piece
    second = np.minimum(first + 1, len(pieces) - 1)
    is_pair = slots.is_second[second] & (second > first)
    document, offset = pieces["document"].astype(np.int64), pieces["offset"].astype(np.int64)
    # A part that stands before the first one in the same document: the two were swapped.
    moved = (document[second] != document[first]) | (offset[second] < offset[first])
    return {
        "second_start": np.where(is_pair, slots.first_token[second], slots.start + slots.length).astype(np.int32),
        "second_document": np.where(is_pair, first_document + document[second], -1),
        "second_offset": np.where(is_pair, offset[second], -1),
        "pair_label": np.where(is_pair, moved, NO_PAIR).astype(np.int8),
    }


def filler_rows(num_rows: int, row_format: RowFormat, like: Rows) -> Rows:
    """Rows of padding, numbered :data:`FILLER`, with the optional fields and dtypes that ``like`` has."""
    fields: dict[str, Any] = {}
    for name in (*PER_ROW, *PER_SEGMENT, "segment_row"):
        column = getattr(like, name)
        if column is not None:
            fields[name] = np.zeros((num_rows if name in PER_ROW else 0, *column.shape[1:]), column.dtype)
    fields["tokens"] = np.full((num_rows, row_format.sequence_length), row_format.pad_id, like.tokens.dtype)
    fields["row_numbers"] = np.full(num_rows, FILLER, np.int64)
    return Rows(**fields)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Rows after rows, all with the same optional fields; at least one part."""
    first_row = np.cumsum([0, *(len(part.row_numbers) for part in parts)])
    fields = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in (*PER_ROW, *PER_SEGMENT)
        if getattr(parts[0], name) is not None
    }
    shifted = [part.segment_row + np.int32(first) for part, first in zip(parts, first_row[:-1], strict=True)]
    return Rows(segment_row=np.concatenate(shifted), **fields)


def sorted_rows(rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
    """Rows in the order of their numbers, and the order that did it, (R,)."""
    order = np.argsort(rows.row_numbers, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    segment_row = place[rows.segment_row]
    segment_order = np.lexsort((rows.segment_start, segment_row))
    fields: dict[str, Any] = {
        name: column[order if name in PER_ROW else segment_order]
        for name in (*PER_ROW, *PER_SEGMENT)
        if (column := getattr(rows, name)) is not None
    }
    return Rows(segment_row=segment_row[segment_order].astype(np.int32), **fields), order


def split_rows(rows: Rows, sizes: Sequence[int]) -> list[Rows]:
    """Cut rows into consecutive groups of these sizes; arrays are views."""
    ends = np.cumsum(sizes)
    groups = []
    for end, size in zip(ends.tolist(), sizes, strict=True):
        begin = end - size
        first, last = np.searchsorted(rows.segment_row, [begin, end])
        borders = {**dict.fromkeys(PER_ROW, (begin, end)), **dict.fromkeys(PER_SEGMENT, (first, last))}
        fields: dict[str, Any] = {
            name: None if (column := getattr(rows, name)) is None else column[slice(*border)]
            for name, border in borders.items()
        }
        groups.append(Rows(segment_row=rows.segment_row[first:last] - np.int32(begin), **fields))
    return groups
