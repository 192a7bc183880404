"""Special ids out of foreign documents: our shards hold none, rows add them.

Pure functions. Letters: D documents of a batch, T tokens of a batch, R runs of special ids, P pieces (what is left of
the documents).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import read_json
from pipeline.corpus.token_source import BATCH_TOKENS, TokenBatch
from pipeline.corpus.tokenizer import TokenizerFacts


@dataclass(frozen=True, eq=False)
class IdFacts:
    """What the tokenizer says of ids."""

    vocab_size: int
    """Ids lie below it."""

    is_mark: NDArray[np.bool_]
    """Which ids never stand for text, (vocab_size,)."""

    eod: int | None
    """The end-of-document id at which documents may be cut."""

    unknown: int | None
    """The id of unknown text, if it is no mark."""

    begins_word: NDArray[np.bool_] | None
    """Which ids begin a word, (vocab_size,), where ids alone tell it."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """What is left of a batch: pieces of documents, in order."""

    document: NDArray[np.int64]
    """Document of every piece, (P,)."""

    begin: NDArray[np.int64]
    """First token of every piece in the batch, (P,)."""

    end: NDArray[np.int64]
    """End of every piece in the batch, (P,)."""

    num_stripped: int
    """Special ids that are gone: those at both ends of documents and those at cuts."""

    num_cuts: int
    """Places inside documents where they were cut."""


def text_marks(facts: TokenizerFacts) -> list[int]:
    """Ids that never stand for text: all special ones, but the unknown id only where it has another part to play.

    GPT-2 has one special token for everything; byte-level BPE never needs the unknown token.
    """
    unknown = facts.special_ids["unk"]
    others = [number for name, number in facts.special_ids.items() if name != "unk"]
    return [number for number in facts.all_special_ids if number != unknown or unknown in others]


def id_facts(facts: TokenizerFacts, tokenizer: Path, words: bool) -> IdFacts:
    """The tables of a tokenizer; the end of a document is its eos id.

    Args:
        tokenizer: folder with its ``tokenizer.json``.
        words: whether to say which ids begin a word. WordPiece tells it (``##``); byte-level BPE and Unigram need the
            text, which an import does not have.
    """
    is_mark = np.zeros(facts.vocab_size, np.bool_)
    is_mark[text_marks(facts)] = True
    unknown = facts.special_ids["unk"]
    model = read_json(tokenizer / "tokenizer.json", "tokenizer")["model"]
    begins_word = None
    if words and model["type"] == "WordPiece":
        begins_word = np.ones(facts.vocab_size, np.bool_)
        prefix = model["continuing_subword_prefix"]
        begins_word[[number for token, number in model["vocab"].items() if token.startswith(prefix)]] = False
    return IdFacts(
        vocab_size=facts.vocab_size,
        is_mark=is_mark,
        eod=facts.special_ids["eos"],
        unknown=None if unknown is None or is_mark[unknown] else unknown,
        begins_word=begins_word,
    )


def strip(batch: TokenBatch, facts: IdFacts, cuts_at_eod: bool) -> Pieces:
    """Take special ids off both ends of every document, and cut at the end-of-document id inside if asked to.

    A document of which nothing is left has no piece.

    Raises:
        UserError: an id outside the vocabulary, or a special id inside a document; names document and position.
    """
    _check_range(batch, facts.vocab_size)
    marks = _mark_positions(batch.tokens, facts.is_mark)
    if not len(marks):
        document = np.flatnonzero(np.diff(batch.borders))
        return Pieces(document, batch.borders[document], batch.borders[document + 1], 0, 0)
    is_first = np.diff(marks, prepend=marks[0] - 2) > 1
    run_begin, run_end = marks[is_first], marks[np.append(is_first[1:], True)] + 1  # runs of marks, (R,)
    begin, end = batch.borders[:-1], batch.borders[1:]
    run = np.searchsorted(run_begin, begin, side="right") - 1  # the last one that begins at or before the document
    begin = np.where((run >= 0) & (run_end[run] > begin), np.minimum(run_end[run], end), begin)
    run = np.searchsorted(run_begin, end - 1, side="right") - 1
    end = np.where((run >= 0) & (run_end[run] >= end), np.maximum(run_begin[run], begin), end)
    document = np.flatnonzero(begin < end)
    begin, end = begin[document], end[document]
    owner = np.searchsorted(begin, run_begin, side="right") - 1
    inside = np.flatnonzero((owner >= 0) & (run_begin < end[owner])) if len(document) else owner[:0]
    if len(inside):
        _check_inside(batch, facts, cuts_at_eod, marks, begin, end)
        begin, end = np.sort(np.append(begin, run_end[inside])), np.sort(np.append(end, run_begin[inside]))
        document = np.searchsorted(batch.borders, begin, side="right") - 1
    return Pieces(document, begin, end, len(marks), len(inside))


def _mark_positions(tokens: NDArray[np.integer], is_mark: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where special ids stand; chunk by chunk, because an index array of a huge document would be huge."""
    chunks = range(0, len(tokens), BATCH_TOKENS)
    found = [begin + np.flatnonzero(is_mark[tokens[begin : begin + BATCH_TOKENS]]) for begin in chunks]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _check_inside(
    batch: TokenBatch,
    facts: IdFacts,
    cuts_at_eod: bool,
    marks: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
) -> None:
    """Refuse special ids between the text of a document at which it may not be cut."""
    owner = np.searchsorted(begin, marks, side="right") - 1
    wrong = (owner >= 0) & (marks < end[owner])
    if cuts_at_eod and facts.eod is not None:
        wrong &= batch.tokens[marks] != facts.eod
    if wrong.any():
        place = int(marks[np.argmax(wrong)])
        document = int(np.searchsorted(batch.borders, place, side="right")) - 1
        raise UserError(
            f"Document {batch.ids[document]!r} holds the special id {int(batch.tokens[place])} at token "
            f"{place - int(batch.borders[document])}, between tokens of text; special ids can only be taken off the "
            "ends of a document, because rows add their own. Tokenise one document a row, without special tokens in it "
            "(`tokenizer(text, add_special_tokens=False)`)."
        )


def _check_range(batch: TokenBatch, vocab_size: int) -> None:
    if not len(batch.tokens) or (int(batch.tokens.min()) >= 0 and int(batch.tokens.max()) < vocab_size):
        return
    position = int(np.argmax((batch.tokens < 0) | (batch.tokens >= vocab_size)))
    document = int(np.searchsorted(batch.borders, position, side="right")) - 1
    raise UserError(
        f"Document {batch.ids[document]!r} holds the id {int(batch.tokens[position])} at token "
        f"{position - int(batch.borders[document])}; the tokenizer has {vocab_size} ids (0 to {vocab_size - 1}). "
        "Give the --tokenizer that the source was tokenised with."
    )


def sentence_starts(batch: TokenBatch, begin: int, end: int) -> NDArray[np.int64] | None:
    """First token of every sentence of the piece ``[begin, end)``, within the piece; None without sentences."""
    if batch.sentences is None:
        return None
    first = np.searchsorted(batch.sentences, begin, side="right")
    last = np.searchsorted(batch.sentences, end)
    return np.append(0, np.unique(batch.sentences[first:last]) - begin)
