"""FASTA: records whatever the cuts of the stream, long ones in parts, mistakes with their line; k-mers of them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from pipeline.config.corpus import CleaningConfig, CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus.fasta import FastaError, Sequence, sequences
from pipeline.corpus.stats import corpus_stats
from pipeline.corpus.symbols import overlapping_kmers
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.writing import build, config_of, refused

FILE = b"""; a comment
>one first record
ACGT
acgn

>two
AC GT\r
GGG*
>three
TTTTTTTTTTTTTTTTTTTTTTT"""


def found(content: bytes, max_letters: int = 100, uppercase: bool = True, size: int = 1000) -> list[Sequence]:
    pieces = [content[begin : begin + size] for begin in range(0, len(content), size)]
    return list(sequences(pieces, max_letters, uppercase))


def test_records() -> None:
    assert [(record.name, record.line, record.letters, record.reason) for record in found(FILE)] == [
        ("one", 2, "ACGTACGN", ""),
        ("two", 6, "ACGTGGG*", ""),
        ("three", 9, "T" * 23, ""),
    ]
    assert found(FILE, uppercase=False)[0].letters == "ACGTacgn"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("max_letters", [1, 5, 8, 100])
def test_the_cuts_of_the_stream_do_not_matter(size: int, max_letters: int) -> None:
    assert found(FILE, max_letters, size=size) == found(FILE, max_letters)


def test_long_records_are_cut() -> None:
    records = found(FILE, 8)
    assert [record.name for record in records] == ["one", "two", "three:1-8", "three:9-16", "three:17-23"]
    assert [len(record.letters) for record in records] == [8, 8, 8, 8, 7]


def test_memory_is_bounded_by_a_part() -> None:
    def endless() -> Any:
        yield b">chromosome\n"
        while True:
            yield b"ACGT" * 1000

    stream = sequences(endless(), 10_000, True)
    assert [len(next(stream).letters) for _ in range(20)] == [10_000] * 20


def test_bad_records_say_where() -> None:
    records = found(b">a\n>b\nAC\nA5\n>c\nAA\n>\nCC\n>d")
    problems = [(record.name, record.line, record.reason, record.detail) for record in records]
    assert problems == [
        ("a", 1, "empty", "record 'a' has no letters"),
        ("b", 2, "unreadable", "line 4: '5' is no letter of a sequence"),
        ("c", 5, "", ""),
        ("line-7", 7, "", ""),
        ("d", 9, "empty", "record 'd' has no letters"),
    ]


def test_only_the_part_with_a_foreign_letter_is_lost() -> None:
    assert [record.letters for record in found(b">a\nACGTA?GTAC\n", 4)] == ["ACGT", "", "AC"]


def test_no_header_and_an_endless_header() -> None:
    with pytest.raises(FastaError, match="begins with `>`") as caught:
        found(b"\n\nACGT\n>a\nAC")
    assert caught.value.line == 3
    with pytest.raises(FastaError, match="header is longer"):
        found(b">" + b"a" * 200_000, size=1000)


def genome(directory: Path, letters: str = "ACGT", num_records: int = 40) -> tuple[Path, dict[str, str]]:
    """Three files of random records, plain, gzip and zstd, and the letters by document id."""
    generator = np.random.default_rng(0)
    directory.mkdir(parents=True)
    records = {
        f"r{number}": "".join(generator.choice(list(letters), int(generator.integers(20, 90))).tolist())
        for number in range(num_records)
    }
    lines = [f">{name} of nothing\n{text[:30].lower()}\n{text[30:]}\n".encode() for name, text in records.items()]
    (directory / "a.fasta").write_bytes(b"".join(lines[:20]))
    (directory / "b.fna.gz").write_bytes(gzip.compress(b"".join(lines[20:30])))
    (directory / "c.faa.zst").write_bytes(zstandard.ZstdCompressor().compress(b"".join(lines[30:])))
    return directory, {f"g/{name}": text for name, text in records.items()}


def documents_in(directory: Path) -> dict[str, list[int]]:
    manifest = read_manifest(LocalFiles(directory))
    result = {}
    for split, table in manifest.splits.items():
        for number in range(len(table)):
            shard = Shard.open(LocalFiles(directory), split, number, manifest)
            for document, name in enumerate(shard.document_ids(range(shard.documents))):
                result[name] = shard.read(document).tolist()
    return result


def auto_tokenizer(corpus: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(corpus / "tokenizer")


KINDS = {
    "overlapping": TokenizerConfig(kind="kmer", kmer=3),
    "apart": TokenizerConfig(kind="kmer", kmer=3, kmer_overlap=False, style="gpt2"),
    "character": TokenizerConfig(kind="character", style="roberta"),
    "byte_bpe": TokenizerConfig(kind="byte_bpe", vocab_size=300, style="roberta"),
    "unigram": TokenizerConfig(kind="unigram", vocab_size=100),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_corpus_of_dna(name: str, tmp_path: Path) -> None:
    folder, texts = genome(tmp_path / "in")
    config = config_of(SourceConfig("g", "fasta", str(folder)), tokenizer=KINDS[name])
    build(config, tmp_path / "out")
    documents = documents_in(tmp_path / "out")
    stock = auto_tokenizer(tmp_path / "out")
    assert documents.keys() == texts.keys()
    for identity, text in texts.items():
        written = overlapping_kmers(text, 3) if name == "overlapping" else text
        assert documents[identity] == stock(written, add_special_tokens=False).input_ids
    unknown = corpus_stats(tmp_path / "out")["unknown_tokens"]
    assert unknown == 0
    verify_corpus(tmp_path / "out")


def test_ids_of_kmers(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">x\nAAACGTN\n>y\nTTTTTTT\n>z\nAC\n")
    for overlap, expected in ((True, [5 + 0, 5 + 1, 5 + 6, 5 + 27, 1]), (False, [5 + 0, 5 + 27])):
        config = config_of(
            SourceConfig("s", "fasta", str(tmp_path / "a.fa")),
            tokenizer=TokenizerConfig(kind="kmer", kmer=3, kmer_overlap=overlap),
            cleaning=CleaningConfig(max_bad_share=1.0),
        )
        summary, _ = build(config, tmp_path / f"out-{overlap}")
        documents = documents_in(tmp_path / f"out-{overlap}")
        assert summary.vocab_size == 5 + 64
        assert documents["s/x"] == expected
        assert documents["s/y"] == [5 + 63] * (5 if overlap else 2)
        assert summary.drops == {"no_tokens": 1}  # a sequence shorter than a k-mer


def test_observed_kmers_of_a_protein(tmp_path: Path) -> None:
    folder, _ = genome(tmp_path / "in", "MKVLAW")
    config = config_of(
        SourceConfig("g", "fasta", str(folder)),
        tokenizer=TokenizerConfig(kind="kmer", kmer=2, kmer_letters="", vocab_size=30),
        shards=ShardConfig(validation_share=0.1),
    )
    summary, _ = build(config, tmp_path / "out")
    vocabulary = auto_tokenizer(tmp_path / "out").get_vocab()
    assert summary.vocab_size == 30
    assert all(set(kmer) <= set("MKVLAW") for kmer in vocabulary if len(kmer) == 2)
    assert summary.notes[0].endswith("%)")
    assert "unknown" in summary.notes[0]


def test_a_tokenizer_of_overlapping_kmers_can_be_taken_again(tmp_path: Path) -> None:
    folder, _ = genome(tmp_path / "in")
    source = SourceConfig("g", "fasta", str(folder))
    build(config_of(source, tokenizer=KINDS["overlapping"]), tmp_path / "a")
    build(config_of(source, tokenizer=TokenizerConfig(path=str(tmp_path / "a/tokenizer"))), tmp_path / "b")
    assert documents_in(tmp_path / "b") == documents_in(tmp_path / "a")


def fasta_of(path: Path, content: str) -> CorpusConfig:
    path.write_text(content)
    return config_of(SourceConfig("s", "fasta", str(path)), tokenizer=KINDS["apart"])


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    message = refused(fasta_of(path, "ACGT\n"), tmp_path / "out1")
    assert f"{path}:1: the first line of a FASTA file begins with `>`" in message
    assert "correct `kind`" in message
    message = refused(fasta_of(path, ">a\nACGT\n>b\n>c\nA1\n"), tmp_path / "out2")
    assert f"{path}:3 empty (record 'b' has no letters)" in message
    assert f"{path}:4 unreadable (line 5: '1' is no letter of a sequence)" in message
    path.with_suffix(".fa.gz").write_bytes(gzip.compress(b">a\nACGT\n")[:-4])
    config = config_of(SourceConfig("s", "fasta", str(path) + ".gz"), tokenizer=KINDS["apart"])
    assert "the compressed file is damaged" in refused(config, tmp_path / "out3")
