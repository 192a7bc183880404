"""Rows of DNA read from the other strand: an augmentation keyed by the number of a row.

The strands of DNA pair A with T and C with G and run in opposite directions, so a sequence and its reverse complement
(complemented letters in reverse order) are two readings of one molecule. Letters are those of the IUPAC codes
(Cornish-Bowden 1985): R and Y, K and M, B and V, D and H are complements, N, S, W and gaps their own. RNA has U for T.

Letters: R rows, S sequence length, V vocabulary, K segments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.jit import kernel
from pipeline.base.keyed import hashes, key
from pipeline.data.rows import RowFormat, Rows
from pipeline.shards.manifest import Manifest

_STREAM: Final = 0x52434F4D  # "RCOM"
_PAIRS: Final = ("CG", "RY", "KM", "BV", "DH", "NN", "SS", "WW", "--", "..")
_ADVICE: Final = (
    "Build the corpus from DNA with tokenizer.kind `character` or `kmer`, or set data.reverse_complement to 0."
)


@dataclass(frozen=True, eq=False)
class ReverseComplement:
    """Replaces the text of some rows by its reverse complement."""

    probability: float
    """Of a row."""

    seed: int
    """Of the run."""

    complements: NDArray[np.int64]
    """The reverse complement of every id; special ones have themselves, (V,)."""

    def chosen(self, row_numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are replaced, by their run-wide numbers: another number in every epoch, (R,)."""
        draws = hashes(key(self.seed, _STREAM), row_numbers) >> np.uint64(32)
        return draws < np.uint64(math.ceil(self.probability * 2**32))

    def __call__(self, rows: Rows, row_format: RowFormat) -> Rows:
        """The rows, the text of every segment of a chosen one replaced; special tokens around it stay where they are.

        What else names the segment (document, offset) stays too: it says which text was read, from the other strand.

        Raises:
            ValueError: rows of pairs.
        """
        if rows.second_start is not None:
            raise ValueError("a pair has no reverse complement: its parts would change places")
        chosen = self.chosen(rows.row_numbers)
        tokens = rows.tokens.copy()
        marks: dict[str, Any] = {
            name: starts.copy()
            for name in ("word_starts", "sentence_starts")
            if (starts := getattr(rows, name)) is not None
        }
        firsts, ends = text_of_segments(rows, row_format)
        own = chosen[rows.segment_row]
        at = (rows.segment_row[own], firsts[own], ends[own])
        _reverse_tokens(*at, self.complements.astype(tokens.dtype), tokens)
        for starts in marks.values():
            _reverse_starts(*at, starts)
        return replace(rows, tokens=tokens, **marks)


def text_of_segments(rows: Rows, row_format: RowFormat) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First slot of the text of every segment in its row, and the slot after its last, (K,) each."""
    firsts = rows.segment_start.astype(np.int64) + len(row_format.begin_ids)
    ends = rows.segment_start.astype(np.int64) + rows.segment_length
    num_end = len(row_format.end_ids)
    has_end = ends - firsts >= num_end
    for place, end_id in enumerate(row_format.end_ids):
        slot = np.maximum(ends - num_end + place, 0)
        has_end &= rows.tokens[rows.segment_row, slot] == end_id
    return firsts, ends - num_end * has_end


@kernel
def _reverse_tokens(
    of_row: NDArray[np.integer],
    firsts: NDArray[np.int64],
    ends: NDArray[np.int64],
    complements: NDArray[np.unsignedinteger],
    tokens: NDArray[np.unsignedinteger],
) -> None:
    """Replace tokens of the last one, (R, S), between ``firsts`` and ``ends``, (K,) each."""
    for segment in range(len(of_row)):
        text = tokens[of_row[segment], firsts[segment] : ends[segment]]
        left, right = 0, len(text) - 1
        while left <= right:
            one, other = complements[text[left]], complements[text[right]]
            text[left], text[right] = other, one
            left += 1
            right -= 1


@kernel
def _reverse_starts(
    of_row: NDArray[np.integer], firsts: NDArray[np.int64], ends: NDArray[np.int64], starts: NDArray[np.bool_]
) -> None:
    """As :func:`_reverse_tokens` for marks at the first token of a word or sentence: in reverse its last one is first,
    and stands behind the first one of what came next. The mark of a text's own first token stays."""
    for segment in range(len(of_row)):
        marks = starts[of_row[segment], firsts[segment] : ends[segment]]
        left, right = 1, len(marks) - 1
        while left < right:
            marks[left], marks[right] = marks[right], marks[left]
            left += 1
            right -= 1


def read_complements(tokenizer: Path, manifest: Manifest) -> NDArray[np.int64]:
    """The reverse complement of every id of a corpus, (V,).

    Args:
        tokenizer: its ``tokenizer.json``.

    Raises:
        UserError: it cannot be read, joins letters in ways that depend on their order, or has a token without a
            reverse complement in the vocabulary.
    """
    try:
        model = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]
        kind, vocabulary, merges = model["type"], model["vocab"], model.get("merges")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"data.reverse_complement: {tokenizer} cannot be read as a tokenizer ({error}).") from None
    if kind not in ("BPE", "WordLevel") or merges:
        raise UserError(
            f"data.reverse_complement: the tokenizer {tokenizer} is a {kind} of pieces of any length, and the reverse "
            f"complement of its pieces is not how it would cut the reverse complement of a text. {_ADVICE}"
        )
    special = set(manifest.all_special_ids)
    text = {token: number for token, number in vocabulary.items() if number not in special}
    return complement_table(text, manifest.vocab_size)


def complement_table(text: Mapping[str, int], vocab_size: int) -> NDArray[np.int64]:
    """The id of every id's reverse complement, (V,); ids that are not in ``text`` have themselves.

    Args:
        text: id by token, without special tokens.

    Raises:
        UserError: naming the first token that has no reverse complement.
    """
    letters = {letter.upper() for token in text for letter in token}
    if {"T", "U"} <= letters:
        raise UserError(
            "data.reverse_complement: the vocabulary has both T and U, so it is not known which of them is the "
            "complement of A. Build the corpus from either DNA or RNA, or set data.reverse_complement to 0."
        )
    pairs = [*_PAIRS, "AU" if "U" in letters else "AT"]
    upper = {pair[0]: pair[1] for pair in pairs} | {pair[1]: pair[0] for pair in pairs}
    complement = upper | {one.lower(): other.lower() for one, other in upper.items()}
    table = np.arange(vocab_size)
    for token, number in text.items():
        strange = next((letter for letter in token if letter not in complement), None)
        if strange is not None:
            raise UserError(
                f"data.reverse_complement: the token {token!r} of the tokenizer has no complement: {strange!r} is no "
                f"letter of DNA or RNA. {_ADVICE}"
            )
        reverse = "".join(complement[letter] for letter in reversed(token))
        if reverse not in text:
            raise UserError(
                f"data.reverse_complement: {reverse!r}, the reverse complement of the token {token!r}, is not in the "
                "vocabulary of the corpus. Build it with all k-mers (`tokenizer.kmer_letters: ACGTN`), or set "
                "data.reverse_complement to 0."
            )
        table[number] = text[reverse]
    return table
