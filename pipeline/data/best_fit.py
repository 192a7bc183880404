"""Best-fit packing: no document that fits a row is split, rows come from the histogram of lengths alone.

A document of n tokens is ``n div cap`` full pieces, a row each, and a remainder of ``n mod cap`` tokens, where
``cap = S - overhead``. The remainder stands before the j-th full piece, j keyed, so cuts move every epoch and lengths
do not. Remainders and short documents share rows by best-fit decreasing, at most S // 8 a row
(:mod:`pipeline.data.fit`). Which document takes which slot of its size is keyed.

With a context of c tokens (GPT kind), every piece but the first of its document begins with the last c tokens of the
piece before, to be read again but not predicted (the strided window of language-model evaluation). A piece then moves
on by ``cap - c`` tokens: a document of n > cap tokens is ``(n - c) div (cap - c)`` full pieces and, if anything is
left, a remainder of ``c + (n - c) mod (cap - c)`` tokens.

Letters: D documents of a shard, F full pieces, I items (remainders), K pieces, R rows, S sequence length.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.keyed_kernels import hash_u64
from pipeline.data.fit import count_fitted_rows, fit_items
from pipeline.data.pieces import ENDS_DOCUMENT, ShardLengths, ShardPlan, as_pieces
from pipeline.data.rows import RowFormat

VERSION = 2

_ENDS_DOCUMENT: Final = ENDS_DOCUMENT << 16
"""In the word of a piece that holds its length and its flags."""


def max_segments(row_format: RowFormat) -> int:
    """Most segments a row: S // 8, so that static `cu_seqlens` stay short."""
    return max(1, row_format.sequence_length // 8)


@kernel
def cuts_of(length: Any, cap: int, context: int) -> tuple[int, int]:
    """Full pieces of a document, and the tokens of its remainder with their context; 0: there is none."""
    if length <= cap:
        return length // cap, length % cap
    full, rest = (length - context) // (cap - context), (length - context) % (cap - context)
    return full, rest + context if rest else 0


@kernel
def count_cuts(lengths: NDArray[np.uint32], cap: int, context: int) -> tuple[int, int]:
    """Full pieces, F, and remainders, I, of documents of these lengths, (D,)."""
    num_full = num_rest = 0
    for document in range(len(lengths)):
        full, rest = cuts_of(np.int64(lengths[document]), cap, context)
        num_full += full
        num_rest += rest > 0
    return num_full, num_rest


@kernel
def cut_documents(
    lengths: NDArray[np.uint32], cap: int, context: int, cuts_key: np.uint64
) -> tuple[NDArray[np.uint32], int]:
    """Cut documents into full pieces of ``cap`` tokens and a remainder at a keyed place.

    Args:
        lengths: of the documents, (D,).
        context: tokens of the piece before with which every piece but a document's first begins, below ``cap``.

    Returns:
        the words of the pieces, all full ones and then all remainders, by document, (F + I, 4), and F.
    """
    num_full, num_rest = count_cuts(lengths, cap, context)
    stride = cap - context
    pieces = np.zeros((num_full + num_rest, 4), np.uint32)
    at, at_rest = 0, num_full
    for document in range(len(lengths)):
        length = np.int64(lengths[document])
        full, rest = cuts_of(length, cap, context)
        before = np.int64(0)  # full pieces before the remainder
        if full:
            # A 32-bit hash times the number of places, its high half: a place, without a division.
            hashed = hash_u64(cuts_key, np.uint64(document)) >> np.uint64(32)
            before = np.int64(hashed * np.uint64(full + 1) >> np.uint64(32))
        for turn in range(full):
            offset = turn * stride + (rest - context if rest and turn >= before else 0)
            pieces[at, 1], pieces[at, 2] = document, offset
            pieces[at, 3] = cap + (_ENDS_DOCUMENT if offset + cap == length else 0)
            at += 1
        if rest:
            pieces[at_rest, 1], pieces[at_rest, 2] = document, before * stride
            pieces[at_rest, 3] = rest + (_ENDS_DOCUMENT if before == full else 0)
            at_rest += 1
    return pieces, num_full


@kernel
def _plan(
    lengths: NDArray[np.uint32],
    cap: int,
    context: int,
    num_slots: int,
    most: int,
    documents_key: np.uint64,
    cuts_key: np.uint64,
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Words of the pieces, (K, 4), and the first piece of every row, then K, (R+1,)."""
    pieces, num_full = cut_documents(lengths, cap, context, cuts_key)
    rests = pieces[num_full:].copy()  # (I, 4)
    slots = np.empty(len(rests), np.int64)
    for item in range(len(rests)):
        slots[item] = (rests[item, 3] & np.uint32(0xFFFF)) + (num_slots - cap)
    item_at, counts = fit_items(slots, num_slots, most, documents_key)
    for place in range(len(rests)):
        for word in range(4):
            pieces[num_full + place, word] = rests[item_at[place], word]
    first_piece = np.empty(num_full + len(counts) + 1, np.int64)
    for row in range(num_full + 1):
        first_piece[row] = row
    for row in range(len(counts)):
        first_piece[num_full + row + 1] = first_piece[num_full + row] + counts[row]
    return pieces, first_piece


@kernel
def _count_rows(lengths: NDArray[np.uint32], cap: int, context: int, num_slots: int, most: int) -> int:
    slots = np.empty(len(lengths), np.int64)
    num_full = num_rests = 0
    for document in range(len(lengths)):
        full, rest = cuts_of(np.int64(lengths[document]), cap, context)
        num_full += full
        if rest:
            slots[num_rests] = rest + (num_slots - cap)
            num_rests += 1
    return num_full + count_fitted_rows(slots[:num_rests], num_slots, most)


def count_rows(shard: ShardLengths, row_format: RowFormat) -> int:
    """R_s of a shard."""
    length = row_format.sequence_length
    lengths = np.array(shard.documents, np.uint32)
    cap, context = length - row_format.overhead, row_format.context_tokens
    return int(_count_rows(lengths, cap, context, length, max_segments(row_format)))


def plan(shard: ShardLengths, row_format: RowFormat, documents_key: int, cuts_key: int) -> ShardPlan:
    """Rows of a shard.

    Args:
        documents_key: assigns the documents to the places of their size.
        cuts_key: places the remainder among the full pieces of a long document.
    """
    pieces, first_piece = _plan(
        np.array(shard.documents, np.uint32),
        row_format.sequence_length - row_format.overhead,
        row_format.context_tokens,
        row_format.sequence_length,
        max_segments(row_format),
        np.uint64(documents_key),
        np.uint64(cuts_key),
    )
    return ShardPlan(as_pieces(pieces), first_piece)
