"""Clean texts -> token ids, sentence starts and word starts, without special tokens.

Letters: D documents of a task, T tokens of a text, N sentences of a text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.corpus.counters import TaskCounter
from pipeline.corpus.duplicates import kept_documents
from pipeline.corpus.sentences import sentence_starts, token_starts
from pipeline.corpus.special_ids import text_marks
from pipeline.corpus.symbols import overlapping_kmers
from pipeline.corpus.text_store import TextStore, durable, save_array, write_facts
from pipeline.corpus.tokenizer import encoder, read_tokenizer_facts
from pipeline.corpus.words import word_starts
from pipeline.shards.layout import pack_bits, token_dtype, unpack_bits

_BATCH_CHARACTERS = 1 << 19
_PIECE_CHARACTERS = 1 << 13
_LARGEST_TEXT_CHARACTERS = 1 << 20

ENCODED: Final = np.dtype(
    [
        ("document", "<u4"),  # index in the task's text store
        ("tokens", "<u4"),
        ("sentences", "<u4"),
    ]
)


def pieces_of(text: str, piece_characters: int) -> list[str]:
    """Cut a text in front of empty lines into pieces of at least ``piece_characters``; joined they are the text."""
    cuts = [0]
    search_from = piece_characters
    while (cut := text.find("\n\n", search_from)) >= 0:
        if text[cut - 1].isspace():  # inside a run of white space, where byte-level BPE would notice the cut
            search_from = cut + 1
            continue
        cuts.append(cut)
        search_from = cut + piece_characters
    return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def piece_characters(backend: Any) -> int:
    """How small pieces may be.

    BERT's and GPT-2's pre-tokenizers never join what stands on both sides of an empty line, so the pieces of a text
    have the tokens of the text, and many small texts encode faster than a large one. Of other tokenizers we do not
    know that, and know the contrary of those that put a space before a text or strip it: only texts too large for the
    memory are cut.
    """
    description = json.loads(backend.to_str())
    pre_tokenizer, normalizer = description["pre_tokenizer"] or {}, description["normalizer"] or {}
    cuts_anywhere = (
        pre_tokenizer.get("type") in ("BertPreTokenizer", "ByteLevel")
        and not pre_tokenizer.get("add_prefix_space")
        and normalizer.get("type") in (None, "BertNormalizer", "NFC", "Lowercase")
    )
    return _PIECE_CHARACTERS if cuts_anywhere else _LARGEST_TEXT_CHARACTERS


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The tokens of a text."""

    tokens: NDArray[np.unsignedinteger]
    """Ids, (T,)."""

    sentence_starts: NDArray[np.integer]
    """First token of every sentence, (N,); empty if not asked for."""

    word_starts: NDArray[np.bool_]
    """Whether a token begins a word, (T,); empty if not asked for."""


def encode_texts(backend: Any, texts: list[str], piece: int, *, sentences: bool, words: bool) -> Iterator[EncodedText]:
    """Encode texts, in pieces of at least ``piece`` characters; sentences and words where they are asked for."""
    cut = [pieces_of(text, piece) for text in texts]
    encode = backend.encode_batch if sentences or words else backend.encode_batch_fast
    encodings = iter(encode([part for parts in cut for part in parts], add_special_tokens=False))
    for text, parts in zip(texts, cut, strict=True):
        ids, ends, begins = [], [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
        num_characters = 0
        for part in parts:
            encoding = next(encodings)
            ids.append(np.array(encoding.ids, np.uint32))
            if sentences or words:
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                ends.append(offsets[:, 1] + num_characters)
            if words:  # a piece begins with an empty line, so its first token begins a word of the whole text too
                begins.append(word_starts(part, encoding.word_ids, offsets))
            num_characters += len(part)
        tokens = np.concatenate(ids)
        starts = np.zeros(0, np.int64)
        if sentences and len(tokens):
            starts = token_starts(sentence_starts(text), np.concatenate(ends))
        yield EncodedText(tokens, starts, np.concatenate(begins))


class TextEncoder(PipelineStep):
    """Encodes the kept documents of a task.

    Files of task ``NNNNN`` in ``output``: ``.tokens`` (uint16 or uint32, end to end), ``.sentences.npy`` (uint32
    starts within the document), ``.words.npy`` (bits of every document in whole bytes), ``.encoded.npy`` (D,) of
    :data:`ENCODED`, ``.facts.json`` (tokens, unknown tokens, documents without tokens).
    """

    type = "tokenizer"
    name = "token ids, sentences and words"

    def __init__(
        self,
        texts: Path,
        duplicates: Path | None,
        first_documents: list[int],
        tokenizer: Path,
        tokenizer_facts: Path,
        sentences: bool,
        words: bool,
        output: Path,
        counters: Path,
    ) -> None:
        super().__init__()
        self.texts = texts
        self.duplicates = duplicates
        self.first_documents = first_documents
        self.tokenizer = tokenizer
        self.tokenizer_facts = tokenizer_facts
        self.sentences = sentences
        self.words = words
        self.output = output
        self.counters = counters

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Encodes task ``rank``; yields none."""
        facts = read_tokenizer_facts(self.tokenizer_facts)
        store = TextStore.open(self.texts, rank)
        self.output.mkdir(parents=True, exist_ok=True)
        counts: dict[int, Counter[str]] = {}
        problems: list[dict[str, Any]] = []
        entries: list[tuple[int, int, int]] = []
        starts: list[NDArray[np.integer]] = [np.zeros(0, np.int64)]
        words: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)]
        dtype = token_dtype(facts.vocab_size)
        unknown = facts.special_ids["unk"]
        marks = np.array(text_marks(facts), np.uint32)
        with durable(self.output / f"{rank:05d}.tokens") as file:
            for document, text, encoded in self._encoded(store, rank, facts.overlapping_kmer):
                tokens = encoded.tokens
                source = int(store.documents["source"][document])
                count = counts.setdefault(source, Counter())
                if not len(tokens):
                    count["drop:no_tokens"] += 1
                    problems.append(_without_tokens(store.id_of(document), source))
                    continue
                self._refuse_marks(tokens, marks, store.id_of(document))
                file.write(tokens.astype(dtype).tobytes())
                entries.append((document, len(tokens), len(encoded.sentence_starts)))
                starts.append(encoded.sentence_starts)
                words.append(pack_bits(encoded.word_starts))
                count["documents"] += 1
                count["characters"] += len(text)
                count["bytes"] += len(text.encode())
                count["tokens"] += len(tokens)
                count["unknown_tokens"] += 0 if unknown is None else int((tokens == unknown).sum())
                self.stat_update("tokens", value=len(tokens))
        save_array(self.output / f"{rank:05d}.encoded.npy", np.array(entries, ENCODED))
        save_array(self.output / f"{rank:05d}.sentences.npy", np.concatenate(starts).astype("<u4"))
        save_array(self.output / f"{rank:05d}.words.npy", np.concatenate(words))
        write_facts(self.output, rank, counts, problems)
        yield from ()

    def _encoded(self, store: TextStore, rank: int, kmer: int) -> Iterator[tuple[int, str, EncodedText]]:
        """Index, text and tokens of the kept documents, in input order."""
        backend = encoder(self.tokenizer)
        piece = piece_characters(backend)
        counter = TaskCounter(self.counters, rank)
        begin, end = self.first_documents[rank : rank + 2]
        batch: list[int] = []
        texts: list[str] = []
        num_characters = 0
        kept = kept_documents(self.duplicates, begin, end).tolist()
        for index, document in enumerate(kept):
            batch.append(document)
            texts.append(store.text_of(document))
            num_characters += len(texts[-1])
            if num_characters >= _BATCH_CHARACTERS or index == len(kept) - 1:
                inputs = [overlapping_kmers(text, kmer) for text in texts] if kmer else texts
                encoded = encode_texts(backend, inputs, piece, sentences=self.sentences, words=self.words)
                yield from zip(batch, texts, encoded, strict=True)
                counter.set(int(store.documents["text_end"][document]))
                batch, texts, num_characters = [], [], 0
        counter.finish(len(store.text))

    def _refuse_marks(self, tokens: NDArray[np.uint32], marks: NDArray[np.uint32], document_id: str) -> None:
        if np.isin(tokens, marks).any():
            found = sorted({int(token) for token in tokens[np.isin(tokens, marks)]})
            raise UserError(
                f"The tokenizer gives the special id {found[0]} for plain text of document {document_id!r}: its "
                "files do not mark that token as special. Mark it in `added_tokens` of its tokenizer.json."
            )


def _without_tokens(document_id: str, source: int) -> dict[str, Any]:
    detail = "the tokenizer gives no token for its text"
    return {"source": source, "place": document_id, "reason": "no_tokens", "detail": detail}


class TokenStore:
    """The encoded documents of one task, as :class:`TextEncoder` wrote them.

    Args:
        dtype: of the tokens.
    """

    def __init__(self, directory: Path, rank: int, dtype: np.dtype) -> None:
        path = directory / f"{rank:05d}.tokens"
        self.encoded = read_encoded(directory, rank)
        """(D,) of :data:`ENCODED`."""
        self._tokens = np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
        self._sentences = np.load(directory / f"{rank:05d}.sentences.npy", mmap_mode="r")
        self._words = np.load(directory / f"{rank:05d}.words.npy", mmap_mode="r")
        num_tokens = self.encoded["tokens"].astype(np.int64)
        self._token_ends = np.cumsum(num_tokens)
        self._sentence_ends = np.cumsum(self.encoded["sentences"], dtype=np.int64)
        self._word_byte_ends = np.cumsum(-(-num_tokens // 8))

    def text(self, index: int) -> EncodedText:
        """Document ``index`` of the table. All are copies: a view would keep the file of its whole task mapped."""
        entry = self.encoded[index]
        num_tokens = int(entry["tokens"])
        tokens_end, sentences_end = int(self._token_ends[index]), int(self._sentence_ends[index])
        words = np.zeros(0, np.bool_)
        if len(self._words):
            words_end = int(self._word_byte_ends[index])
            words = unpack_bits(np.array(self._words[words_end - -(-num_tokens // 8) : words_end]), 0, num_tokens)
        return EncodedText(
            np.array(self._tokens[tokens_end - num_tokens : tokens_end]),
            np.array(self._sentences[sentences_end - int(entry["sentences"]) : sentences_end]),
            words,
        )


def read_encoded(directory: Path, rank: int) -> NDArray[np.void]:
    """The table of task ``rank``, (D,) of :data:`ENCODED`."""
    return np.load(directory / f"{rank:05d}.encoded.npy")
