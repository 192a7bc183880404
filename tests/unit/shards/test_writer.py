"""The writer: deterministic, whole or absent, readable by anyone."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.shards.writer import ShardWriter
from tests.corpora import make_documents, write_shard

LENGTHS = [1, 299, 300, 301, 5, 5, 5, 600, 1]


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    documents = make_documents(np.random.default_rng(0), LENGTHS, 1000, True, "d")
    facts = write_shard(tmp_path / "train/00003.tar", documents)
    content = (tmp_path / "train/00003.tar").read_bytes()
    assert facts.name == "train/00003"
    assert (facts.documents, facts.tokens) == (len(LENGTHS), sum(LENGTHS))
    assert (facts.bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
@pytest.mark.parametrize("sentences", [True, False])
def test_webdataset_reads_the_same_documents(tmp_path: Path, vocab_size: int, sentences: bool) -> None:
    documents = make_documents(np.random.default_rng(0), LENGTHS, vocab_size, sentences, "d")
    path = tmp_path / "train/00000.tar"
    write_shard(path, documents, vocab_size)
    found = []
    for record in webdataset.WebDataset(str(path), shardshuffle=False).decode():
        tokens, offsets = record["tokens.npy"], record["documents.npy"]
        assert ("sentences.npy" in record) == sentences
        for number, name in enumerate(record["ids.json"]):
            begin, end = offsets[number], offsets[number + 1]
            starts = record["sentences.npy"] if sentences else np.zeros(0)
            found.append((name, tokens[begin:end], starts[(starts >= begin) & (starts < end)] - begin))
    assert [name for name, _, _ in found] == [document.name for document in documents]
    for (_, tokens, starts), document in zip(found, documents, strict=True):
        np.testing.assert_array_equal(tokens, document.tokens)
        if document.sentences is not None:
            np.testing.assert_array_equal(starts, document.sentences)


def test_blocks_hold_whole_documents_and_close_when_full(tmp_path: Path) -> None:
    documents = make_documents(np.random.default_rng(0), LENGTHS, 1000, True, "d")
    write_shard(tmp_path / "train/00000.tar", documents, block_tokens=300)
    with tarfile.open(tmp_path / "train/00000.tar") as tar:
        tokens = [member for member in tar if member.name.endswith(".tokens.npy")]
    assert [(member.size - 128) // 2 for member in tokens] == [300, 300, 301, 615, 1]
    assert all(member.offset_data % 512 == 0 for member in tokens)


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    documents = make_documents(np.random.default_rng(0), LENGTHS, 1000, True, "d")
    one, two = (write_shard(tmp_path / f"{name}/train/00000.tar", documents) for name in "ab")
    assert one == two
    for ending in ("tar", "idx"):
        assert (tmp_path / f"a/train/00000.{ending}").read_bytes() == (
            tmp_path / f"b/train/00000.{ending}"
        ).read_bytes()


def leave_with_an_exception(path: Path) -> None:
    with ShardWriter(path, np.dtype("<u2"), 10) as writer:
        writer.add("a", np.arange(20), None)
        raise RuntimeError("stop")


def test_nothing_stays_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        leave_with_an_exception(tmp_path / "train/00000.tar")
    assert list((tmp_path / "train").iterdir()) == []


def test_nothing_stays_when_publishing_fails(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train/00000.tar", np.dtype("<u2"), 10)
    writer.add("a", np.arange(20), None)
    (tmp_path / "train/00000.tar").mkdir()  # the rename cannot replace a directory
    with pytest.raises(OSError, match=r"00000\.tar"):
        writer.close()
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["00000.tar"]


def test_a_shard_without_documents_is_a_tar_without_members(tmp_path: Path) -> None:
    facts = write_shard(tmp_path / "train/00000.tar", [])
    assert (facts.documents, facts.tokens, facts.bytes) == (0, 0, 1024)
    with tarfile.open(tmp_path / "train/00000.tar") as tar:
        assert tar.getmembers() == []


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train/00000.tar"
    with pytest.raises(ValueError, match="uint16 or uint32 tokens, not int64"):
        ShardWriter(path, np.dtype("<i8"), 10)
    with pytest.raises(ValueError, match="block_tokens is 0"):
        ShardWriter(path, np.dtype("<u2"), 0)
    writer = ShardWriter(path, np.dtype("<u2"), 10)
    for name, tokens, message in (
        ("empty", np.zeros(0, np.int64), r"1-D integer array of 1 to .*shape \(0,\)"),
        ("floats", np.ones(3), "got float64"),
        ("large", np.array([65536]), r"0\.\.65535 for uint16"),
        ("negative", np.array([-1]), r"0\.\.65535"),
    ):
        with pytest.raises(ValueError, match=f"document '{name}'.*{message}"):
            writer.add(name, tokens, None)
    for starts in ([1], [], [0, 3], [0, 2, 2]):
        with pytest.raises(ValueError, match=r"document 'sentences': sentence starts must increase from 0.* below 3"):
            writer.add("sentences", np.arange(3), np.array(starts, np.int64))
    writer.add("first", np.arange(3), np.array([0, 1]))
    with pytest.raises(ValueError, match="every document of a shard, or for none"):
        writer.add("second", np.arange(3), None)
    assert writer.close().tokens == 3
