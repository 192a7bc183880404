"""Files of other programs, made without the code under test: Megatron-LM pairs byte by byte, tokenisers, documents."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.config.corpus import TokenizerConfig
from pipeline.corpus.tokenizer import TokenizerFacts, make_tokenizer
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from tests.unit.corpus.writing import make_texts

STRUCT_OF_CODE = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}
BYTES_OF_CODE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}
STYLES = {
    "bert": TokenizerConfig(vocab_size=260),
    "gpt2": TokenizerConfig(kind="byte_bpe", style="gpt2", vocab_size=320),
}

Sequences = list[list[int]]


def megatron_pair(documents: Sequence[Sequences], code: int = 8) -> tuple[bytes, bytes]:
    """`.bin` and `.idx` of documents of sequences of tokens, from the description of the format alone."""
    sequences = [sequence for document in documents for sequence in document]
    binary = b"".join(struct.pack(f"<{len(sequence)}{STRUCT_OF_CODE[code]}", *sequence) for sequence in sequences)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code)
    index += struct.pack("<Q", len(sequences)) + struct.pack("<Q", len(documents) + 1)
    pointers, borders = [], [0]
    position = 0
    for sequence in sequences:
        pointers.append(position)
        position += len(sequence) * BYTES_OF_CODE[code]
    for document in documents:
        borders.append(borders[-1] + len(document))
    index += b"".join(struct.pack("<i", len(sequence)) for sequence in sequences)
    index += b"".join(struct.pack("<q", pointer) for pointer in pointers)
    return binary, index + b"".join(struct.pack("<q", border) for border in borders)


def write_pair(prefix: Path, documents: Sequence[Sequences], code: int = 8) -> Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    binary, index = megatron_pair(documents, code)
    prefix.with_name(prefix.name + ".bin").write_bytes(binary)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    return prefix


def write_tokenizer(directory: Path, style: str) -> TokenizerFacts:
    return make_tokenizer(STYLES[style], lambda: iter(make_texts(100)), directory, directory.with_suffix(".json"))


def random_documents(
    count: int, *, special: Sequence[int], vocab_size: int, seed: int = 0, longest: int = 60
) -> list[list[int]]:
    """Documents of text ids, lengths 1 to ``longest``."""
    generator = np.random.default_rng(seed)
    text = np.setdiff1d(np.arange(vocab_size), special)
    return [generator.choice(text, int(generator.integers(1, longest + 1))).tolist() for _ in range(count)]


def in_sentences(document: list[int], seed: int) -> Sequences:
    """A document cut into one to four sentences."""
    generator = np.random.default_rng(seed)
    cuts = np.unique(generator.integers(1, max(2, len(document)), int(generator.integers(0, 4))))
    borders = [0, *(cut for cut in cuts.tolist() if cut < len(document)), len(document)]
    return [document[begin:end] for begin, end in pairwise(borders)]


def whole(document: Sequences) -> list[int]:
    """The tokens of all sentences."""
    return [token for sentence in document for token in sentence]


def documents_of(directory: Path, split: str = "train") -> dict[str, list[int]]:
    """Documents of a corpus by name, in its order, through ``Shard.read``."""
    manifest = read_manifest(LocalFiles(directory))
    documents: dict[str, list[int]] = {}
    for number in range(len(manifest.splits[split])):
        shard = Shard.open(LocalFiles(directory), split, number, manifest)
        for document, name in enumerate(shard.document_ids(range(shard.documents))):
            assert name not in documents
            documents[name] = shard.read(document).tolist()
    return documents
