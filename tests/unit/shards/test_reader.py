"""Reading shards: every document where the index says, every damage named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.manifest import ShardTable
from pipeline.shards.reader import Shard, read_index
from tests.corpora import Corpus, random_lengths, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", random_lengths(0, 3, 40))


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_every_document_reads_back(tmp_path: Path, vocab_size: int) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(0, 3, 40), vocab_size=vocab_size)
    for number, documents in enumerate(corpus.documents["train"]):
        shard = Shard.open(corpus.files, "train", number, corpus.manifest, verify=True)
        assert shard.documents == len(documents)
        assert shard.lengths.tolist() == [len(document.tokens) for document in documents]
        assert shard.document_ids(range(len(documents))) == [document.name for document in documents]
        assert shard.document_ids([5, 3, 5]) == [documents[index].name for index in (5, 3, 5)]
        for index, document in enumerate(documents):
            np.testing.assert_array_equal(shard.read(index), document.tokens)
            np.testing.assert_array_equal(shard.sentence_starts(index), document.sentences)
            half = len(document.tokens) // 2
            np.testing.assert_array_equal(shard.read(index, half), document.tokens[half:])
            np.testing.assert_array_equal(shard.read(index, 0, half), document.tokens[:half])


def test_reads_are_views_that_cannot_be_written(corpus: Corpus) -> None:
    tokens = Shard.open(corpus.files, "train", 0, corpus.manifest).read(0)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_reads_outside_a_document_are_refused(corpus: Corpus) -> None:
    shard = Shard.open(corpus.files, "train", 0, corpus.manifest)
    length = int(shard.lengths[2])
    for begin, end in ((0, length + 1), (-1, 1), (2, 1)):
        with pytest.raises(IndexError, match="of document 2, which has"):
            shard.read(2, begin, end)
    with pytest.raises(IndexError, match=f"has no document {shard.documents}"):
        shard.document_ids([shard.documents])


def test_sentences_of_a_corpus_without_them_name_the_setting(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[5, 6]], sentences=False)
    shard = Shard.open(corpus.files, "train", 0, corpus.manifest)
    with pytest.raises(UserError, match=r"00000\.tar has no sentence offsets.*shards\.sentences: true"):
        shard.sentence_starts(0)


def test_truncated_tar_names_both_sizes(corpus: Corpus) -> None:
    path = corpus.directory / "train/00001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(
        UserError, match=rf"00001\.tar has {len(content) - 512} bytes; the manifest says {len(content)}"
    ):
        Shard.open(corpus.files, "train", 1, corpus.manifest)


def test_flipped_byte_is_found_when_asked_to_verify(corpus: Corpus) -> None:
    path = corpus.directory / "train/00001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    Shard.open(corpus.files, "train", 1, corpus.manifest)
    with pytest.raises(
        UserError, match=r"00001\.tar has sha256 .*; the manifest says .*bytes have changed.*corpus verify"
    ):
        Shard.open(corpus.files, "train", 1, corpus.manifest, verify=True)


def test_missing_files_are_named(corpus: Corpus) -> None:
    (corpus.directory / "train/00001.tar").unlink()
    with pytest.raises(UserError, match=r"The shard .*00001\.tar does not exist"):
        Shard.open(corpus.files, "train", 1, corpus.manifest)
    (corpus.directory / "train/00002.idx").unlink()
    with pytest.raises(UserError, match=r"The shard index .*00002\.idx does not exist.*corpus verify"):
        Shard.open(corpus.files, "train", 2, corpus.manifest)


def test_index_of_another_shard_is_refused_with_both_counts(corpus: Corpus) -> None:
    index = corpus.directory / "train/00000.idx"
    index.write_bytes((corpus.directory / "train/00001.idx").read_bytes())
    table = corpus.manifest.splits["train"]
    found, expected = (f"{table.documents[n]} documents and {table.tokens[n]} tokens" for n in (1, 0))
    with pytest.raises(UserError, match=rf"00000\.idx lists {found} of 2 bytes; the manifest says\s+{expected}"):
        read_index(corpus.files, "train", 0, corpus.manifest)


def test_index_that_leads_outside_the_tar_is_refused(corpus: Corpus) -> None:
    table = corpus.manifest.splits["train"]
    short = ShardTable(table.documents, table.tokens, table.bytes // 2, table.sha256)
    manifest = replace(corpus.manifest, splits={"train": short})
    with pytest.raises(UserError, match=r"00000\.idx: documents end after the \d+ bytes of the tar"):
        read_index(corpus.files, "train", 0, manifest)


def test_index_whose_blocks_are_out_of_order_is_refused(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.idx"
    content = bytearray(path.read_bytes())
    content[-12:-8] = (0).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.idx: the blocks do not cover its \d+ documents in order"):
        read_index(corpus.files, "train", 0, corpus.manifest)


def test_damaged_tar_header_is_named(corpus: Corpus) -> None:
    shard = Shard.open(corpus.files, "train", 0, corpus.manifest)
    offset = int(shard.index.blocks["first_item"][1]) * 2 - 640
    path = corpus.directory / "train/00000.tar"
    content = bytearray(path.read_bytes())
    content[offset + 20] ^= 1
    path.write_bytes(content)
    damaged = Shard.open(corpus.files, "train", 0, corpus.manifest)
    document = int(shard.index.blocks["first_document"][1])
    with pytest.raises(UserError, match=r"00000\.tar: block 1 has a damaged tar header .*corpus verify"):
        damaged.document_ids([document])
