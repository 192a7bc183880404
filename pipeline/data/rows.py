"""What the planner hands on: rows of tokens with the borders of their segments, and the format of such a row.

Letters: R rows, S sequence length, K segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowFormat:
    """How pieces of documents stand in a row."""

    sequence_length: int
    """Tokens a row (S), special tokens included."""

    begin_ids: tuple[int, ...]
    """Ids before every piece: ``(cls,)`` for the BERT kind, none for the GPT kind."""

    end_ids: tuple[int, ...]
    """Ids after a piece: ``(sep,)`` for the BERT kind, ``(eos,)`` for the GPT kind."""

    pad_id: int
    """Id in the tail that no segment fills."""

    end_only_at_document_end: bool
    """GPT kind: ``end_ids`` stand only where the piece ends its document."""

    middle_ids: tuple[int, ...] = ()
    """Pairs only: ids between the two parts of a segment, ``(sep,)``."""

    context_tokens: int = 0
    """GPT kind: tokens of the piece before with which every piece but a document's first begins."""

    @property
    def overhead(self) -> int:
        """Special tokens a segment has, at most."""
        return len(self.begin_ids) + len(self.middle_ids) + len(self.end_ids)


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows and the K segments in them, sorted by (row, start). Padding is no segment."""

    tokens: NDArray[np.unsignedinteger]
    """Ids with special tokens placed and ``pad_id`` in the tail, (R, S), of the shards' dtype, uint16 or uint32;
    they are widened where a model reads them, and take a quarter of the memory until then."""

    row_numbers: NDArray[np.int64]
    """Run-wide number of every row: it keys masks and dropout, (R,)."""

    segment_row: NDArray[np.int32]
    """Row of every segment, (K,)."""

    segment_start: NDArray[np.int32]
    """First slot of every segment in its row, (K,)."""

    segment_length: NDArray[np.int32]
    """Slots of every segment, special tokens included, (K,)."""

    document: NDArray[np.int64]
    """Number of the segment's document in the split, (K,); of a pair, that of its first part."""

    offset: NDArray[np.int64]
    """First token of the segment within its document, (K,); of a pair, that of its first part."""

    epoch: NDArray[np.int64]
    """Epoch of every row, (R,)."""

    shard: NDArray[np.int32]
    """Shard of every row, in its source, (R,)."""

    source: NDArray[np.int32]
    """Source of every row in the mixture, (R,)."""

    word_starts: NDArray[np.bool_] | None = None
    """Where a token begins a word, every special token and every first token of a segment (of a pair: of either part)
    included, (R, S); only for objectives that ask for it."""

    sentence_starts: NDArray[np.bool_] | None = None
    """Where a token of text begins a sentence, (R, S); only for objectives that ask for it."""

    segment_context: NDArray[np.int32] | None = None
    """First tokens of every segment that the segment before it in the document has ended with: they are read again and
    not predicted again, (K,); only where rows have a context. 0 for the first segment of a document."""

    second_start: NDArray[np.int32] | None = None
    """Pairs only: slot in its row where the segment's second part begins, (K,); the segment's end where it has none."""

    second_document: NDArray[np.int64] | None = None
    """Pairs only: number in the split of the second part's document, (K,); -1 where there is no second part."""

    second_offset: NDArray[np.int64] | None = None
    """Pairs only: first token of the second part within its document, (K,); -1 where there is no second part."""

    pair_label: NDArray[np.int8] | None = None
    """Pairs only: 0 where the second part follows the first in its document, 1 where it is of another document or (SOP)
    the parts are swapped, :data:`NO_PAIR` where there is no second part, (K,)."""


NO_PAIR: Final = -100
"""Label of a segment of one part: the index that cross-entropy ignores."""

PER_ROW: Final = ("tokens", "row_numbers", "epoch", "shard", "source", "word_starts", "sentence_starts")
"""Fields of :class:`Rows` with an entry a row."""

PER_SEGMENT: Final = (
    "segment_start",
    "segment_length",
    "document",
    "offset",
    "segment_context",
    "second_start",
    "second_document",
    "second_offset",
    "pair_label",
)
"""Fields of :class:`Rows` with an entry a segment, but for ``segment_row``."""
