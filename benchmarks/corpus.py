"""The text that is measured: real documents where they are there, else lengths drawn from a log-normal distribution.

Letters: R rows, S sequence length, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import (
    BATCH_ROWS,
    Document,
    is_written,
    open_rows,
    rows_in_order,
    steps_an_epoch,
    write_corpus,
)
from benchmarks.machine import WORK

SHARED: Final = Path("../shared/corpora")
DICTIONARIES: Final = ("gcide", "wordnet_glosses")
"""Files of one-line entries: measured on their own, since their documents are 20 times shorter than prose."""

_TOKENIZER: Final = "tokenizers/bert-base-uncased/tokenizer.json"
_TOKENS_A_SHARD: Final = 8_000_000
_DOCUMENTS_A_SHARD: Final = 65_536
"""As `pretrain corpus build` closes shards."""

_VERSION: Final = "4"
_VOCABULARY: Final = 30_522


@dataclass(frozen=True)
class MeasuredCorpus:
    """A corpus on disk, and what it was made of."""

    directory: Path
    description: str
    num_tokens: int
    num_documents: int


def prepare(name: str, quick: bool) -> MeasuredCorpus:
    """Build the corpus ``prose`` or ``dictionaries`` unless it is there.

    Args:
        quick: only the first two million tokens.
    """
    real = (SHARED / _TOKENIZER).is_file()
    directory = WORK / f"{name}{'-quick' if quick else ''}{'' if real else '-synthetic'}"
    facts_path = directory / "facts.json"
    if not (is_written(directory, _VERSION) and facts_path.is_file()):
        documents = list(_first_tokens(_real(name) if real else _synthetic(name), 2_000_000 if quick else 40_000_000))
        tokenizer = (SHARED / _TOKENIZER).read_bytes() if real else b"{}"
        write_corpus(directory, _deal(documents), _VOCABULARY, tokenizer, _VERSION)
        lengths = np.array([len(document.tokens) for document in documents])
        source = (
            "real English text, WordPieces of bert-base-uncased" if real else "synthetic tokens, log-normal lengths"
        )
        facts = {
            "description": f"{name}: {source}; {len(lengths):,} documents, {lengths.sum():,} tokens, "
            f"mean {lengths.mean():.0f}, median {np.median(lengths):.0f} tokens a document",
            "num_tokens": int(lengths.sum()),
            "num_documents": len(lengths),
        }
        facts_path.write_text(json.dumps(facts), encoding="utf-8")
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    return MeasuredCorpus(directory, facts["description"], facts["num_tokens"], facts["num_documents"])


def _real(name: str) -> Iterator[Document]:
    """Documents of the English files, in a fixed order that mixes the files."""
    import orjson
    import zstandard
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SHARED / _TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = []
    for path in sorted((SHARED / "english").glob("*.jsonl.zst")):
        if (path.name.split(".")[0] in DICTIONARIES) != (name == "dictionaries"):
            continue
        with zstandard.open(path, "rb") as file:
            entries = map(orjson.loads, file.read().splitlines())
        texts += [(f"{path.name.split('.')[0]}/{entry['id']}", entry["text"]) for entry in entries]
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    for first in range(0, len(order), 256):
        names, batch = zip(*(texts[number] for number in order[first : first + 256]), strict=True)
        encoded = tokenizer.encode_batch_fast(list(batch), add_special_tokens=False)
        for document, encoding in zip(names, encoded, strict=True):
            if encoding.ids:
                yield Document(document, np.array(encoding.ids, np.uint16))


def _synthetic(name: str) -> Iterator[Document]:
    """Log-normal lengths (sigma 1) with the means of the real corpora, uniform tokens."""
    random = np.random.default_rng(0)
    mean = 350 if name == "prose" else 45
    number = 0
    while True:
        length = max(1, int(random.lognormal(np.log(mean) - 0.5, 1.0)))
        yield Document(f"synthetic/{number}", random.integers(1000, _VOCABULARY, length).astype(np.uint16))
        number += 1


def _first_tokens(documents: Iterator[Document], num_tokens: int) -> Iterator[Document]:
    seen = 0
    for document in documents:
        yield document
        seen += len(document.tokens)
        if seen >= num_tokens:
            return


def _deal(documents: list[Document]) -> list[list[Document]]:
    """Consecutive documents to shards of the default size."""
    shards: list[list[Document]] = [[]]
    filled = 0
    for document in documents:
        if filled >= _TOKENS_A_SHARD or len(shards[-1]) >= _DOCUMENTS_A_SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(document)
        filled += len(document.tokens)
    return shards


@dataclass(frozen=True)
class PackedRows:
    """An epoch of our rows, in files: what the peers are given."""

    path: Path
    """``rows.npy``: uint16 (R, S), special tokens in place."""

    num_rows: int
    num_tokens: int
    """Tokens of documents and special tokens in them: everything but padding."""

    digest: str
    """:func:`rows_digest` of them."""

    @property
    def tokens_a_batch(self) -> float:
        """Tokens that are no padding in 64 rows, mean over the epoch."""
        return self.num_tokens / self.num_rows * BATCH_ROWS

    def load(self) -> NDArray[np.uint16]:
        """The rows as a memory map, (R, S)."""
        return np.load(self.path, mmap_mode="r")


def pack_rows(corpus: MeasuredCorpus) -> PackedRows:
    """The rows of whole steps of epoch 0, kept beside the corpus; written anew only if the engine now packs others."""
    path, facts_path = corpus.directory / "rows.npy", corpus.directory / "rows.json"
    stream = open_rows(corpus.directory)
    parts, num_tokens = [], 0
    for rows in rows_in_order(stream, steps_an_epoch(stream)):
        parts.append(rows.tokens.astype(np.uint16))
        num_tokens += int(rows.segment_length.sum())
    packed = np.concatenate(parts)
    facts = {"num_rows": len(packed), "num_tokens": num_tokens, "digest": rows_digest(packed)}
    if not facts_path.is_file() or json.loads(facts_path.read_text(encoding="utf-8")) != facts:
        np.save(path, packed)
        facts_path.write_text(json.dumps(facts), encoding="utf-8")
    return PackedRows(path, **facts)


def rows_digest(rows: NDArray[np.integer]) -> str:
    """sha256 over the sorted hashes of the rows: equal for equal multisets of rows, in whatever order."""
    hashed = sorted(hashlib.blake2b(row.astype(np.uint16).tobytes(), digest_size=16).digest() for row in rows)
    return hashlib.sha256(b"".join(hashed)).hexdigest()


def num_batches(rows: PackedRows) -> int:
    """Batches of 64 rows in an epoch."""
    return rows.num_rows // BATCH_ROWS
