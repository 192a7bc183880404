"""Small corpora written with the real writer, for tests that need shards but no text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.shards.files import LocalFiles
from pipeline.shards.layout import token_dtype
from pipeline.shards.manifest import Manifest, ShardTable, write_manifest
from pipeline.shards.writer import ShardFacts, ShardWriter

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "eos": 5, "bos": None}
NUM_SPECIAL = 6


@dataclass
class Document:
    """What was written."""

    name: str
    tokens: np.ndarray
    sentences: np.ndarray | None
    words: np.ndarray | None = None


@dataclass
class Corpus:
    """A corpus on disk and in memory: documents by split and shard."""

    directory: Path
    manifest: Manifest
    documents: dict[str, list[list[Document]]]

    @property
    def files(self) -> LocalFiles:
        """As the engine opens it."""
        return LocalFiles(self.directory)

    def accept_shard(self, number: int, split: str = "train") -> None:
        """Rewrite the manifest as if the shard's present files were right: what a faulty writer would leave."""
        table = self.manifest.splits[split]
        tar, index = ((self.directory / f"{split}/{number:05d}{ending}").read_bytes() for ending in (".tar", ".idx"))
        sizes = table.bytes.copy()
        sizes[number] = len(tar)
        accepted = replace(
            table,
            bytes=sizes,
            sha256=_with_digest(table.sha256, number, tar),
            index_sha256=_with_digest(table.index_sha256, number, index),
        )
        self.manifest = replace(self.manifest, splits={**self.manifest.splits, split: accepted})
        write_manifest(self.directory, self.manifest)


def _with_digest(joined: str, number: int, content: bytes) -> str:
    return joined[: 64 * number] + hashlib.sha256(content).hexdigest() + joined[64 * (number + 1) :]


def make_documents(
    generator: np.random.Generator,
    lengths: Sequence[int],
    vocab_size: int,
    sentences: bool,
    name: str,
    words: bool = False,
) -> list[Document]:
    documents = []
    for number, length in enumerate(lengths):
        starts = np.unique(np.append(0, generator.integers(0, length, 4))) if sentences else None
        tokens = generator.integers(NUM_SPECIAL, vocab_size, length)
        begins = generator.random(length) < 0.6 if words else None
        if begins is not None:
            begins[0] = True
        documents.append(Document(f"{name}/{number} é", tokens, starts, begins))
    return documents


def write_shard(
    path: Path, documents: Sequence[Document], vocab_size: int = 1000, block_tokens: int = 300
) -> ShardFacts:
    with ShardWriter(path, token_dtype(vocab_size), block_tokens) as writer:
        for document in documents:
            writer.add(document.name, document.tokens, document.sentences, document.words)
        return writer.close()


def write_corpus(
    directory: Path,
    lengths: Sequence[Sequence[int]],
    *,
    validation: Sequence[Sequence[int]] = ((30, 7, 55), (12,)),
    vocab_size: int = 1000,
    sentences: bool = True,
    words: bool = False,
    block_tokens: int = 300,
    seed: int = 0,
) -> Corpus:
    """A corpus whose training shards hold documents of these lengths (outer: shards)."""
    generator = np.random.default_rng(seed)
    documents: dict[str, list[list[Document]]] = {"train": [], "validation": []}
    tables = {}
    for split, shards in (("train", lengths), ("validation", validation)):
        facts = []
        for number, of_shard in enumerate(shards):
            written = make_documents(generator, of_shard, vocab_size, sentences, f"{split}-{number}", words)
            documents[split].append(written)
            facts.append(write_shard(directory / f"{split}/{number:05d}.tar", written, vocab_size, block_tokens))
        tables[split] = ShardTable.from_facts(facts)
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer/tokenizer.json").write_text("{}")
    manifest = Manifest(
        tokenizer_fingerprint=hashlib.sha256(b"{}").hexdigest(),
        vocab_size=vocab_size,
        special_ids=SPECIAL_IDS,
        all_special_ids=list(range(NUM_SPECIAL)),
        splits=tables,
        has_sentences=sentences,
        has_words=words,
        sources=[{"name": "source", "path": "somewhere"}],
        drops={"duplicate": 3},
        extra={"unigram_entropy": 6.5},
    )
    write_manifest(directory, manifest)
    return Corpus(directory, manifest, documents)


def random_lengths(seed: int, num_shards: int, num_documents: int, mean: float = 40.0) -> list[list[int]]:
    """Log-normal document lengths, at least 1; shards differ in size."""
    generator = np.random.default_rng(seed)
    return [
        np.maximum(1, generator.lognormal(np.log(mean), 1.0, num_documents + int(generator.integers(0, 5))))
        .astype(int)
        .tolist()
        for _ in range(num_shards)
    ]
