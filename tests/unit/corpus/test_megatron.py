"""Megatron-LM pairs against bytes packed by hand from the description of the format."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.corpus.megatron import MegatronSource, MegatronWriter, megatron_dtype, open_megatron
from pipeline.corpus.token_source import TokenBatch, runs
from tests.unit.corpus.foreign_files import BYTES_OF_CODE, in_sentences, megatron_pair, random_documents, write_pair


def read_back(prefix: Path) -> tuple[list[str], list[list[list[int]]]]:
    """Names and sequences of all documents."""
    source = MegatronSource(open_megatron(prefix), "name")
    names, documents = [], []
    for batch in source.batches():
        names += batch.ids
        for begin, end in zip(batch.borders[:-1], batch.borders[1:], strict=True):
            starts = [begin]
            if batch.sentences is not None:
                starts = [start for start in batch.sentences.tolist() if begin <= start < end] or [begin]
            ends = [*starts[1:], end]
            documents.append([batch.tokens[a:b].tolist() for a, b in zip(starts, ends, strict=True)])
    return names, documents


@pytest.mark.parametrize("code", BYTES_OF_CODE)
@pytest.mark.parametrize("sentences", [False, True])
def test_a_pair_packed_by_hand_is_read(tmp_path: Path, code: int, sentences: bool) -> None:
    plain = random_documents(70, special=(), vocab_size=120, longest=30)
    documents = [in_sentences(document, number) if sentences else [document] for number, document in enumerate(plain)]
    prefix = write_pair(tmp_path / "text.v1_document", documents, code)
    names, found = read_back(prefix)
    assert names == [f"name/{number}" for number in range(70)]
    assert found == documents
    sizes = [size for _, lengths in MegatronSource(open_megatron(prefix), "x").sizes() for size in lengths.tolist()]
    assert sizes == [len(document) for document in plain]


@pytest.mark.parametrize("vocab_size", [300, 65_499, 65_500, 70_000])
@pytest.mark.parametrize("sentences", [False, True])
def test_what_is_written_are_the_bytes_packed_by_hand(tmp_path: Path, vocab_size: int, sentences: bool) -> None:
    plain = random_documents(40, special=(), vocab_size=vocab_size)
    documents = [in_sentences(document, number) if sentences else [document] for number, document in enumerate(plain)]
    with MegatronWriter(tmp_path / "a", megatron_dtype(vocab_size), sentences) as writer:
        for begin in range(0, 40, 7):
            chosen = documents[begin : begin + 7]
            borders = np.cumsum([0, *(sum(map(len, document)) for document in chosen)])
            lengths = [len(sequence) for document in chosen for sequence in document]
            starts = np.cumsum([0, *lengths[:-1]]) if sentences else None
            tokens = np.array([token for document in chosen for sequence in document for token in sequence])
            writer.add(TokenBatch(["x"] * len(chosen), tokens, borders, starts))
    binary, index = megatron_pair(documents, 8 if vocab_size < 65_500 else 4)
    assert (tmp_path / "a.bin").read_bytes() == binary
    assert (tmp_path / "a.idx").read_bytes() == index


def test_documents_without_sequences_and_empty_sequences(tmp_path: Path) -> None:
    documents: list[list[list[int]]] = [[], [[1, 2]], [[]], [[3], [], [4, 5]], []]
    names, found = read_back(write_pair(tmp_path / "a", documents))
    assert len(names) == 5
    assert [[token for sequence in document for token in sequence] for document in found] == [
        [], [1, 2], [], [3, 4, 5], []
    ]  # fmt: skip


def test_runs_cover_all_documents_once_and_hold_one_at_least() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        lengths = generator.integers(0, 30, int(generator.integers(0, 40)))
        found = list(runs(lengths, 50))
        assert [number for begin, end in found for number in range(begin, end)] == list(range(len(lengths)))
        assert all(end - begin == 1 or lengths[begin:end].sum() <= 50 for begin, end in found)


def changed(index: bytes, at: int, content: bytes) -> bytes:
    return index[:at] + content + index[at + len(content) :]


DOCUMENTS = [[[1, 2, 3]], [[4, 5], [6]]]  # 3 sequences: lengths at 34, pointers at 46, document indices at 70
BINARY, INDEX = megatron_pair(DOCUMENTS)
REFUSED = {
    "another file": (BINARY, b"\x93NUMPY" + INDEX[6:], "is no Megatron-LM index: it begins with b'"),
    "fairseq": (BINARY, b"TNTIDX\x00\x00" + INDEX[8:], "(fairseq's older format)"),
    "header cut": (BINARY, INDEX[:20], "has 20 bytes, less than its header of 34"),
    "version": (BINARY, changed(INDEX, 9, struct.pack("<Q", 2)), "has version 2; this program reads version 1"),
    "dtype": (BINARY, changed(INDEX, 17, b"\x09"), "has the dtype code 9; known are 1 uint8, 2 int8, 3 int16"),
    "float": (BINARY, changed(INDEX, 17, b"\x07"), "holds float32 values (dtype code 7), no token ids"),
    "index cut": (BINARY, INDEX[:-4], "has 90 bytes; an index of 3 sequences and 3 document indices has 94"),
    "multimodal": (BINARY, INDEX + bytes(3), "is multimodal"),
    "binary cut": (BINARY[:-2], INDEX, "has 10 bytes; a.idx describes 6 tokens of uint16, 12 bytes: it is truncated"),
    "another binary": (BINARY + b"ab", INDEX, "it belongs to another .idx"),
    "negative": (BINARY, changed(INDEX, 38, struct.pack("<i", -2)), "sequence 1 has a negative length"),
    "pointer": (BINARY, changed(INDEX, 54, struct.pack("<q", 8)), "sequence 1 begins at byte 8 of the .bin, not where"),
    "borders": (BINARY, changed(INDEX, 78, struct.pack("<q", 4)), "do not rise from 0 to its 3 sequences"),
    "last border": (BINARY, changed(INDEX, 86, struct.pack("<q", 2)), "do not rise from 0 to its 3 sequences"),
    "no borders": (b"", INDEX[:18] + bytes(16), "has 34 bytes; an index of 0 sequences and 0 document indices"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_pairs_are_refused(tmp_path: Path, case: str) -> None:
    binary, index, message = REFUSED[case]
    (tmp_path / "a.bin").write_bytes(binary)
    (tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(UserError) as caught:
        open_megatron(tmp_path / "a")
    assert message in str(caught.value)
    assert str(tmp_path / "a.") in str(caught.value)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_half_a_pair_is_refused(tmp_path: Path, ending: str) -> None:
    write_pair(tmp_path / "a", DOCUMENTS)
    (tmp_path / f"a{ending}").unlink()
    with pytest.raises(UserError, match=f"a{ending} does not exist; a Megatron-LM data set is a pair of .bin and .idx"):
        open_megatron(tmp_path / "a")
