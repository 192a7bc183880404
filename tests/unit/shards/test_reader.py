"""Reading shards: every document where the index says, sentences and words beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.reader import Shard
from tests.corpora import Corpus, random_lengths, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", random_lengths(0, 3, 40), words=True)


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_every_document_reads_back(tmp_path: Path, vocab_size: int) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(0, 3, 40), vocab_size=vocab_size, words=True)
    for number, documents in enumerate(corpus.documents["train"]):
        shard = Shard.open(corpus.files, "train", number, corpus.manifest)
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


def test_words_of_any_part_of_a_document(corpus: Corpus) -> None:
    generator = np.random.default_rng(0)
    for number, documents in enumerate(corpus.documents["train"]):
        shard = Shard.open(corpus.files, "train", number, corpus.manifest)
        for index, document in enumerate(documents):
            assert document.words is not None
            for _ in range(5):
                begin, end = np.sort(generator.integers(0, len(document.tokens) + 1, 2)).tolist()
                found = shard.word_starts(int(shard.index.starts[index]) + begin, end - begin)
                assert found.dtype == np.bool_
                np.testing.assert_array_equal(found, document.words[begin:end])


def test_sentences_of_a_whole_shard(corpus: Corpus) -> None:
    for number, documents in enumerate(corpus.documents["train"]):
        shard = Shard.open(corpus.files, "train", number, corpus.manifest)
        lengths, first_sentence = shard.sentences()
        assert (lengths.dtype, first_sentence.dtype) == (np.uint32, np.int64)
        assert len(first_sentence) == len(documents) + 1
        assert first_sentence[-1] == len(lengths)
        for index, document in enumerate(documents):
            assert document.sentences is not None
            expected = np.diff(np.append(document.sentences, len(document.tokens)))
            found = lengths[first_sentence[index] : first_sentence[index + 1]]
            np.testing.assert_array_equal(found, expected)


def test_blocks_of_documents_are_those_of_the_table(corpus: Corpus) -> None:
    index = Shard.open(corpus.files, "train", 0, corpus.manifest).index
    first = index.blocks["first_document"].tolist()
    assert len(first) > 3
    expected = [sum(document >= begin for begin in first) - 1 for document in range(len(index.lengths))]
    assert index.block_of(np.arange(len(index.lengths))).tolist() == expected


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


def test_what_a_corpus_was_built_without_names_the_setting(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[5, 6]], sentences=False)
    shard = Shard.open(corpus.files, "train", 0, corpus.manifest)
    for ask in (lambda: shard.sentence_starts(0), shard.sentences):
        with pytest.raises(UserError, match=r"00000\.tar has no sentence offsets.*shards\.sentences: true"):
            ask()
    with pytest.raises(UserError, match=r"00000\.tar has no word starts.*shards\.words: true"):
        shard.word_starts(int(shard.index.starts[0]), 5)


def test_a_shard_without_documents_opens(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[], [3]])
    shard = Shard.open(corpus.files, "train", 0, corpus.manifest)
    assert shard.documents == 0
    assert [part.tolist() for part in shard.sentences()] == [[], [0]]
    shard.check_blocks(np.zeros(0, np.int64))


def test_a_shard_is_checked_when_all_its_blocks_are_and_threads_do_not_count_twice(corpus: Corpus) -> None:
    shard = Shard.open(corpus.files, "train", 0, corpus.manifest)
    blocks = np.arange(len(shard.index.blocks))
    assert len(blocks) > 3
    for block in blocks.tolist():
        assert not shard.is_checked
        shard._check_block(block)
        shard._check_block(block)  # as another thread would that found it unchecked at the same time
    assert shard.is_checked
