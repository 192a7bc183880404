"""Sentence pairs: chunks of whole sentences, split in two, packed by best fit.

A chunk takes whole sentences up to ``cap = S - overhead`` tokens, greedily from the document's start; a longer sentence
is cut every ``cap`` tokens first. For ``nsp`` and ``sop`` one chunk in ten is shorter, up to a number of tokens between
2 and ``cap`` that is drawn for it, or its first sentence where that is longer: BERT's and ALBERT's data have such short
sequences, lest a model know none but long ones. Chunks depend on no key of the run. A chunk's split point is a keyed
border between two of its sentences, or, where it has only one, a keyed token within it: BERT's original data gave such
a chunk a second part from another document (google-research/bert, create_pretraining_data.py), which would make it
longer than planned, and a corpus of one-sentence documents would have no pairs.

``nsp`` (Devlin et al. 2019): half of the chunks exchange their second parts with chunks of other documents of the shard
whose second part is just as long. ``sop`` (Lan et al. 2020): half of the chunks swap their two parts. ``none``: parts
stay as they are. Lengths never change, so the number of rows holds for every key, and every sentence is read once.

Letters: D documents of a shard, U units (sentences, or parts of one), C chunks, E chunks of two parts, I items.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import MAX_PERMUTATION, hashes, key
from pipeline.data.best_fit import max_segments as max_segments
from pipeline.data.fit import count_fitted_rows, fit_items
from pipeline.data.pieces import SECOND_PART, ShardLengths, ShardPlan, make_pieces
from pipeline.data.rows import RowFormat

VERSION = 2

PairMode = Literal["nsp", "sop", "none"]

MODES: Final[dict[str, PairMode]] = {"pairs": "none", "pairs_nsp": "nsp", "pairs_sop": "sop"}
"""Names in ``data.packing``."""

_SPLIT: Final = 1
_PARTNERS: Final = 2
_COINS: Final = 3
"""Names of the keyed choices: split point, who exchanges with whom, whether they do (or swap)."""


SHORT_SHARE: Final = 0.1
"""Share of the chunks that are shorter, for ``nsp`` and ``sop`` (``short_seq_prob`` of google-research/bert)."""

_SHORT_KEY: Final = 0x5407
"""Of all runs and shards: which chunks are short must not change the number of rows."""


class Chunks(NamedTuple):
    """Chunks of a shard, document after document."""

    document: NDArray[np.int64]
    """Document of every chunk, (C,)."""

    offset: NDArray[np.int64]
    """First token of every chunk in its document, (C,)."""

    length: NDArray[np.int64]
    """Tokens of every chunk, (C,)."""

    first_unit: NDArray[np.int64]
    """First unit of every chunk, then U, (C+1,)."""

    unit_start: NDArray[np.int64]
    """First token of every unit in the shard, then the number of tokens, (U+1,)."""


def make_chunks(shard: ShardLengths, cap: int, with_short: bool) -> Chunks:
    """Chunks of up to ``cap`` tokens.

    Args:
        with_short: :data:`SHORT_SHARE` of them are shorter.

    Raises:
        ValueError: the shard was read without sentences.
    """
    if shard.sentences is None or shard.first_sentence is None:
        raise ValueError("pairs need the sentences of the shard")
    sentences = shard.sentences.astype(np.int64)
    num_parts = -(-sentences // cap)
    part_end = np.cumsum(num_parts)
    units = np.full(int(num_parts.sum()), cap, np.int64)  # (U,)
    units[part_end - 1] = sentences - (num_parts - 1) * cap
    end = np.cumsum(units)  # (U,)
    unit_start = np.concatenate([[0], end])
    first_of_document = np.concatenate([[0], part_end])[shard.first_sentence]  # (D+1,)
    document = np.repeat(np.arange(len(shard.documents)), np.diff(first_of_document))  # (U,)
    # The chunk that begins at a unit ends before the first unit that does not fit, or with its document.
    most = _most_tokens(len(units), cap) if with_short else cap
    next_chunk = np.minimum(np.searchsorted(end, unit_start[:-1] + most, side="right"), first_of_document[document + 1])
    next_chunk = np.maximum(next_chunk, np.arange(1, len(units) + 1))  # one unit, however long
    first_unit, unit, follows = [], 0, next_chunk.data  # of the view, single entries are read fastest
    while unit < len(follows):
        first_unit.append(unit)
        unit = follows[unit]
    first_unit.append(len(follows))
    first = np.array(first_unit, np.int64)
    start = unit_start[first]  # (C+1,)
    owner = document[first[:-1]]
    document_start = unit_start[first_of_document]  # (D+1,)
    return Chunks(owner, start[:-1] - document_start[owner], np.diff(start), first, unit_start)


def _most_tokens(num_units: int, cap: int) -> NDArray[np.int64]:
    """Most tokens of the chunk that begins at each unit, (U,)."""
    drawn = hashes(_SHORT_KEY, np.arange(num_units))
    upper, lower = (drawn >> np.uint64(32)).astype(np.int64), (drawn & np.uint64(2**32 - 1)).astype(np.int64)
    shorter = np.minimum(2 + (lower * (cap - 1) >> 32), cap)  # 2 .. cap
    return np.where(upper < int(SHORT_SHARE * 2**32), shorter, cap)


def first_parts(chunks: Chunks, base_key: int) -> NDArray[np.int64]:
    """Tokens of every chunk's first part, (C,): a keyed border of units, a keyed token of a lone unit, or all of a lone
    token."""
    num_units = np.diff(chunks.first_unit)
    is_lone = num_units == 1
    num_borders = np.where(is_lone, chunks.length, num_units) - 1
    hashed = (hashes(base_key, np.arange(len(num_units))) >> np.uint64(32)).astype(np.int64)
    border = 1 + (hashed * num_borders >> 32)  # 1 .. number of borders
    first_unit = chunks.first_unit[:-1]
    at_unit = chunks.unit_start[np.where(is_lone, first_unit, first_unit + border)] - chunks.unit_start[first_unit]
    return np.where(is_lone, border, at_unit)


def exchange(second: NDArray[np.int64], document: NDArray[np.int64], base_key: int) -> NDArray[np.int64]:
    """From which chunk every chunk takes its second part: a permutation that keeps lengths, (C,).

    The chunks whose second parts have one length stand in a keyed order of their documents; the first half is matched
    with the second, so that partners are of one document only where that has more than half of them. An odd one joins
    the first two in a cycle. Every two or three exchange, cyclically, or stay as they are, by a keyed coin.

    Args:
        second: tokens of every chunk's second part, below 2**16, (C,).
        document: of every chunk, (C,).

    Raises:
        ValueError: more chunks than the 24 bits of a sort key can number.
    """
    num_chunks = len(second)
    _check_number(num_chunks)
    keys = hashes(key(base_key, _PARTNERS), (second << 32) + document) >> np.uint64(40)
    keys |= second.astype(np.uint64) << np.uint64(24)
    keys = (keys << np.uint64(24)) | np.arange(num_chunks, dtype=np.uint64)
    chunk = (np.sort(keys[second > 0]) & np.uint64(MAX_PERMUTATION - 1)).astype(np.int64)  # (E,) by length
    _, first, count = np.unique(second[chunk], return_index=True, return_counts=True)
    half = count // 2
    own_first, own_half = np.repeat(first, count), np.repeat(half, count)  # (E,) of every chunk's group
    place = np.arange(len(chunk))
    rank = place - own_first
    is_odd_one = rank == 2 * own_half
    donor = np.where(is_odd_one, place, np.where(rank < own_half, place + own_half, place - own_half))
    cycle = own_first + np.where(is_odd_one, 0, rank % np.maximum(own_half, 1))  # its first place
    owner = document[chunk]
    one, two, odd = (at[(count % 2 == 1) & (count > 1)] for at in (first, first + half, first + 2 * half))
    joins = (owner[one] != owner[two]) & (owner[two] != owner[odd]) & (owner[odd] != owner[one])
    donor[two[joins]], donor[odd[joins]] = odd[joins], one[joins]
    coin = hashes(key(base_key, _COINS), cycle) >> np.uint64(63) == 1
    exchanged = coin & (owner[donor] != owner)
    taken_from = np.arange(num_chunks)
    taken_from[chunk[exchanged]] = chunk[donor[exchanged]]
    return taken_from


def _check_number(num_chunks: int) -> None:
    if num_chunks > MAX_PERMUTATION:
        raise ValueError(f"a shard has {num_chunks} chunks of sentences; at most {MAX_PERMUTATION} can be exchanged")


def count_rows(shard: ShardLengths, row_format: RowFormat, mode: PairMode = "nsp") -> int:
    """R_s of a shard."""
    chunks = make_chunks(shard, row_format.sequence_length - row_format.overhead, with_short=mode != "none")
    length, most = row_format.sequence_length, max_segments(row_format)
    return int(count_fitted_rows(chunks.length + row_format.overhead, length, most))


def plan(
    shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int, mode: PairMode = "nsp"
) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: assigns the chunks to the places of their size.
        cuts_key: splits the chunks, and exchanges or swaps their parts.
        mode: what the second parts are.
    """
    chunks = make_chunks(shard, row_format.sequence_length - row_format.overhead, with_short=mode != "none")
    _check_number(len(chunks.length))
    item, counts = fit_items(  # (I,), (R,)
        chunks.length + row_format.overhead,
        row_format.sequence_length,
        max_segments(row_format),
        np.uint64(documents_key),
    )
    first = first_parts(chunks, key(cuts_key, _SPLIT))
    second = chunks.length - first
    other = np.arange(len(first))
    if mode == "nsp":
        other = exchange(second, chunks.document, cuts_key)
    columns = (  # (2, C) each: first parts, second parts
        np.stack([chunks.document, chunks.document[other]]),
        np.stack([chunks.offset, (chunks.offset + first)[other]]),
        np.stack([first, second]),
    )
    if mode == "sop":
        swapped = (hashes(key(cuts_key, _COINS), other) >> np.uint64(63) == 1) & (second > 0)
        for column in columns:
            column[:, swapped] = column[::-1, swapped]
    document, offset, length = (column[:, item].T.ravel() for column in columns)  # (2I,)
    pieces = make_pieces(shard.documents, (document, offset, length))
    pieces["flags"][1::2] |= np.uint16(SECOND_PART)
    chunk_border = np.concatenate([[0], np.cumsum(counts)])  # (R+1,)
    pieces_before = np.concatenate([[0], np.cumsum(1 + (second[item] > 0))])  # (I+1,)
    return ShardPlan(pieces=pieces[length > 0], first_piece=pieces_before[chunk_border])
