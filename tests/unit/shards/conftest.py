"""A small corpus written with the real writer, and the documents it holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards.manifest import Manifest, ShardTable, write_manifest
from pipeline.shards.writer import ShardFacts, ShardWriter

VOCAB_SIZE = 1000


@dataclass
class Corpus:
    """What was written: (id, tokens, sentence starts) of every document, by shard."""

    directory: Path
    manifest: Manifest
    documents: list[list[tuple[str, np.ndarray, np.ndarray | None]]]


def random_documents(seed: int, num_documents: int, sentences: bool = True, vocab_size: int = VOCAB_SIZE) -> list:
    generator = np.random.default_rng(seed)
    documents = []
    for number in range(num_documents):
        length = int(generator.integers(1, 90))
        tokens = generator.integers(0, vocab_size, length)
        starts = np.unique(np.append(0, generator.integers(0, length, 4)))
        documents.append((f"source/{seed}-{number} é\n", tokens, starts if sentences else None))
    return documents


def write_shard(path: Path, documents: list, dtype: str = "<u2", block_tokens: int = 300) -> ShardFacts:
    with ShardWriter(path, np.dtype(dtype), block_tokens) as writer:
        for document in documents:
            writer.add(*document)
        return writer.close()


def write_corpus(directory: Path, num_shards: int = 3, vocab_size: int = VOCAB_SIZE, sentences: bool = True) -> Corpus:
    dtype = "<u2" if vocab_size <= 65536 else "<u4"
    documents = [random_documents(number, 40 + number, sentences, vocab_size) for number in range(num_shards)]
    facts = [write_shard(directory / f"train/{n:05d}.tar", shard, dtype) for n, shard in enumerate(documents)]
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer/tokenizer.json").write_text("{}")
    manifest = Manifest(
        tokenizer_fingerprint=hashlib.sha256(b"{}").hexdigest(),
        vocab_size=vocab_size,
        special_ids={"pad": 0, "cls": 2, "sep": 3, "mask": 4, "unk": 1},
        all_special_ids=[0, 1, 2, 3, 4],
        splits={"train": ShardTable.from_facts(facts)},
        sources=[{"name": "source", "path": "somewhere"}],
        drops={"duplicate": 3},
        extra={"unigram_entropy": 6.5},
    )
    write_manifest(directory, manifest)
    return Corpus(directory, manifest, documents)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus")
