"""From pieces to rows: tokens copied from the maps, special tokens placed, segments measured.

Letters: R rows, S sequence length, P pieces, K segments, C shards that rows come from, B blocks of a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.memory_kernels import address_of, array_at
from pipeline.data.pieces import ENDS_DOCUMENT, SECOND_PART
from pipeline.data.rows import NO_PAIR, PER_ROW, PER_SEGMENT, RowFormat, Rows

FILLER: Final = -1
"""Row number of a filler row."""


class WordBits(Protocol):
    """What gathering reads of a shard whose words are wanted."""

    first_items: NDArray[np.int64]
    """First item of every block, ascending, (B,)."""

    word_addresses: NDArray[np.uint64]
    """Where the bits of every block lie, a bit for each of its items, little bit order; 0 until loaded, (B,)."""

    def load_words(self, block: int) -> object:
        """Fill in the address of a block."""


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
    words: Sequence[WordBits] | None = None,
    sentences: Sequence[NDArray[np.int64]] | None = None,
) -> Rows:
    """Build rows.

    Segments stand side by side from slot 0. The end ids of a row's last segment are left out where the row has no slot
    left for them (concatenation cut a document exactly at its end).

    Args:
        pieces: row after row, (P,) of ``pieces.PIECE``.
        counts: pieces of every row, (R,); a row without any is padding.
        maps: flat token arrays of the C shards that rows come from.
        map_of_row: which of them every row comes from, (R,).
        row_numbers, epoch, shard, source: of every row, (R,).
        first_document: documents of the split before the shard of every row, (R,).
        words: of the C shards; given, ``Rows.word_starts`` is filled.
        sentences: items of the C shards at which sentences begin, ascending; given, ``Rows.sentence_starts`` is filled.

    Raises:
        ValueError: pieces that outgrow their row or their shard, or shards of different token types: a bug.
    """
    tokens = np.empty((len(row_numbers), row_format.sequence_length), _dtype_of(maps))
    segments = np.zeros(len(pieces), _SEGMENT)
    memory = np.array([(address_of(flat), len(flat)) for flat in maps], np.uint64).reshape(-1, 2)  # (C, 2)
    form, first_slots = _as_numbers(row_format), np.empty(len(pieces), np.int64)
    num_segments = _fill_rows(pieces, counts, memory, map_of_row, first_document, form, tokens, segments, first_slots)
    if num_segments < 0:
        raise ValueError(f"the pieces of row {-1 - num_segments} of these outgrow it, or lie outside their shard")
    segments = segments[:num_segments]
    word_starts = _word_starts(pieces, counts, words, map_of_row, first_slots, segments, tokens.shape)
    sentence_starts = _sentence_starts(pieces, counts, sentences, map_of_row, first_slots, tokens.shape)
    names = _OF_SEGMENT + (_OF_PAIR if row_format.middle_ids else ())
    return Rows(
        tokens=tokens,
        row_numbers=row_numbers,
        epoch=epoch,
        shard=shard.astype(np.int32),
        source=source.astype(np.int32),
        word_starts=word_starts,
        sentence_starts=sentence_starts,
        segment_context=_contexts(segments["offset"], row_format.context_tokens),
        **{name: np.ascontiguousarray(segments[name]) for name in names},
    )


def _dtype_of(maps: Sequence[NDArray[np.unsignedinteger]]) -> np.dtype:
    dtypes = {flat.dtype for flat in maps}
    if len(dtypes) > 1:
        raise ValueError(f"rows of shards with different token types: {sorted(map(str, dtypes))}")
    return dtypes.pop() if dtypes else np.dtype(np.uint16)


_Format: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int, bool]


def _as_numbers(row_format: RowFormat) -> _Format:
    """A row format as kernels take it."""
    begin, middle, end = (
        np.array(ids, np.int64) for ids in (row_format.begin_ids, row_format.middle_ids, row_format.end_ids)
    )
    return begin, middle, end, row_format.pad_id, row_format.end_only_at_document_end


_OF_SEGMENT: Final = ("segment_row", "segment_start", "segment_length", "document", "offset")
_OF_PAIR: Final = ("second_start", "second_document", "second_offset", "pair_label")
_SEGMENT: Final = np.dtype(
    [
        ("document", "<i8"),
        ("offset", "<i8"),
        ("second_document", "<i8"),
        ("second_offset", "<i8"),
        ("segment_row", "<i4"),
        ("segment_start", "<i4"),
        ("segment_length", "<i4"),
        ("second_start", "<i4"),
        ("pair_label", "<i1"),
    ],
    align=True,
)
"""A segment as the kernel writes it: the fields of ``Rows``."""


@kernel
def _fill_rows(
    pieces: NDArray[np.void],
    counts: NDArray[np.int64],
    memory: NDArray[np.uint64],
    map_of_row: NDArray[np.int64],
    first_document: NDArray[np.int64],
    row_format: _Format,
    tokens: NDArray[np.unsignedinteger],
    segments: NDArray[np.void],
    first_slots: NDArray[np.int64],
) -> int:
    """Fill the last three: rows, their segments, and the flat slot of every piece's first token.

    Returns:
        the number of segments; or -1 - row of the first row that cannot be.
    """
    begin_ids, middle_ids, end_ids, pad_id, end_only_at_document_end = row_format
    num_rows, length = tokens.shape
    piece, num_segments = 0, 0
    for row in range(num_rows):
        slots = tokens[row]
        at, last = 0, piece + counts[row] - 1
        flat = array_at(memory[map_of_row[row], 0], memory[map_of_row[row], 1], slots) if counts[row] else slots
        while piece <= last:
            own = pieces[piece]
            size, item = int(own.length), int(own.item)
            is_second = own.flags & SECOND_PART != 0
            has_end = piece == last or pieces[piece + 1].flags & SECOND_PART == 0
            if end_only_at_document_end and own.flags & ENDS_DOCUMENT == 0:
                has_end = False
            before = middle_ids if is_second else begin_ids
            if at + len(before) + size > length or item + size > len(flat):
                return -1 - row
            if not is_second:
                _begin_segment(segments[num_segments], row, at, first_document[row], own)
                num_segments += 1
            at = _write(slots, at, before)
            if is_second:
                _add_second(segments[num_segments - 1], at, first_document[row], own)
            first_slots[piece] = row * length + at
            origin, target = flat[item : item + size], slots[at : at + size]
            for offset in range(size):  # views, so that no index needs a check of its sign
                target[offset] = origin[offset]
            at += size
            if has_end and at + len(end_ids) <= length:
                at = _write(slots, at, end_ids)
            elif has_end and piece < last:
                return -1 - row
            segments[num_segments - 1].segment_length = at - segments[num_segments - 1].segment_start
            if segments[num_segments - 1].pair_label == NO_PAIR:
                segments[num_segments - 1].second_start = at
            piece += 1
        slots[at:] = pad_id
    return num_segments


@kernel
def _write(slots: NDArray[np.unsignedinteger], at: int, ids: NDArray[np.int64]) -> int:
    """Write special tokens; return the slot after them."""
    for place in range(len(ids)):
        slots[at + place] = ids[place]
    return at + len(ids)


@kernel
def _begin_segment(segment: Any, row: int, start: int, first_document: int, piece: Any) -> None:
    segment.segment_row = row
    segment.segment_start = start
    segment.document = first_document + piece.document
    segment.offset = piece.offset
    segment.second_document = -1
    segment.second_offset = -1
    segment.pair_label = NO_PAIR


@kernel
def _add_second(segment: Any, first_token: int, first_document: int, piece: Any) -> None:
    document, offset = first_document + int(piece.document), int(piece.offset)
    # A part that stands before the first one in the same document: the two were swapped.
    segment.pair_label = document != segment.document or offset < segment.offset
    segment.second_start = first_token
    segment.second_document = document
    segment.second_offset = offset


def _contexts(offset: NDArray[np.int64], context_tokens: int) -> NDArray[np.int32] | None:
    """``Rows.segment_context``, (K,): every piece but the first of a document has a context."""
    return np.where(offset > 0, np.int32(context_tokens), np.int32(0)) if context_tokens else None


def _sentence_starts(
    pieces: NDArray[np.void],
    counts: NDArray[np.int64],
    sentences: Sequence[NDArray[np.int64]] | None,
    map_of_row: NDArray[np.int64],
    first_slots: NDArray[np.int64],
    shape: tuple[int, ...],
) -> NDArray[np.bool_] | None:
    """Where tokens begin sentences, (R, S), if that is asked for."""
    if sentences is None:
        return None
    flat = np.zeros(shape[0] * shape[1], np.bool_)
    shard_of_piece = np.repeat(map_of_row, counts)  # (P,)
    for shard, starts in enumerate(sentences):
        own = np.flatnonzero(shard_of_piece == shard)
        item = pieces["item"][own].astype(np.int64)
        first, last = (np.searchsorted(starts, end) for end in (item, item + pieces["length"][own]))
        count = last - first
        # Sentences of all these pieces, one after another.
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
        number = np.arange(before[-1]) - np.repeat(before[:-1] - first, count)
        flat[starts[number] + np.repeat(first_slots[own] - item, count)] = True
    return flat.reshape(shape)


def _word_starts(
    pieces: NDArray[np.void],
    counts: NDArray[np.int64],
    words: Sequence[WordBits] | None,
    map_of_row: NDArray[np.int64],
    first_slots: NDArray[np.int64],
    segments: NDArray[np.void],
    shape: tuple[int, ...],
) -> NDArray[np.bool_] | None:
    """Where tokens begin words, (R, S), if that is asked for."""
    if words is None:
        return None
    starts = np.zeros(shape, np.bool_)
    first_items = np.concatenate([np.zeros(0, np.int64), *(bits.first_items for bits in words)])
    first_block = np.cumsum([0, *(len(bits.first_items) for bits in words)])  # (C+1,)
    missing = np.empty(len(pieces), np.int64)
    while True:
        addresses = np.concatenate([np.zeros(0, np.uint64), *(bits.word_addresses for bits in words)])
        num_missing = _copy_words(
            pieces, counts, map_of_row, first_slots, segments, first_items, first_block, addresses, missing, starts
        )
        if not num_missing:
            return starts
        for block in np.unique(missing[:num_missing]).tolist():
            shard = int(np.searchsorted(first_block, block, side="right")) - 1
            words[shard].load_words(block - int(first_block[shard]))


@kernel
def _copy_words(
    pieces: NDArray[np.void],
    counts: NDArray[np.int64],
    map_of_row: NDArray[np.int64],
    first_slots: NDArray[np.int64],
    segments: NDArray[np.void],
    first_items: NDArray[np.int64],
    first_block: NDArray[np.int64],
    addresses: NDArray[np.uint64],
    missing: NDArray[np.int64],
    starts: NDArray[np.bool_],
) -> int:
    """Fill the last one, or the one before it with the blocks whose words are not loaded; return how many these are.

    Special tokens and the first token of every piece begin a word whatever the bits say.
    """
    flat = starts.reshape(-1)
    like = np.empty(0, np.uint8)
    for number in range(len(segments)):
        first = segments[number].segment_row * starts.shape[1] + segments[number].segment_start
        flat[first : first + segments[number].segment_length] = True
    num_missing = end_piece = 0
    for row in range(len(counts)):
        first, end = first_block[map_of_row[row]], first_block[map_of_row[row] + 1]
        first_piece, end_piece = end_piece, end_piece + counts[row]
        for piece in range(first_piece, end_piece):
            item, size, slot = int(pieces[piece].item), int(pieces[piece].length), first_slots[piece]
            block = first + np.searchsorted(first_items[first:end], item, side="right") - 1
            if addresses[block] == 0:
                missing[num_missing] = block
                num_missing += 1
                continue
            bit = item - first_items[block]
            bits = array_at(addresses[block], (bit + size + 7) >> 3, like)
            for offset in range(1, size):
                at = bit + offset
                flat[slot + offset] = (bits[at >> 3] >> (at & 7)) & 1
    return num_missing


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
