"""`pretrain corpus verify`: passes what is whole, names what is not."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.layout import index_bytes, npy_bytes, padded, parse_index, tar_header
from pipeline.shards.verify import rebuild_index, verify_corpus
from tests.corpora import Corpus, random_lengths, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", random_lengths(0, 3, 40), words=True)


def test_a_whole_corpus_passes_with_its_facts(corpus: Corpus) -> None:
    seen = []
    facts = verify_corpus(corpus.directory, lambda done, total: seen.append((done, total)))
    assert seen == [(number, 5) for number in range(1, 6)]
    assert facts.fingerprint == corpus.manifest.fingerprint
    assert facts.shards == {"train": 3, "validation": 2}
    train = corpus.documents["train"]
    assert facts.documents["train"] == sum(map(len, train))
    assert facts.tokens["train"] == sum(len(document.tokens) for shard in train for document in shard)
    assert facts.bytes == sum(path.stat().st_size for path in corpus.directory.glob("*/*.tar"))


def test_rebuilt_index_is_the_one_written(corpus: Corpus) -> None:
    for path in corpus.directory.glob("*/*.tar"):
        rebuilt = rebuild_index(path, corpus.manifest.vocab_size, sentences=True, words=True)
        assert rebuilt == path.with_suffix(".idx").read_bytes()


@pytest.mark.parametrize("place", [0, 600, 3000, -1200])
def test_any_flipped_byte_is_found(corpus: Corpus, place: int) -> None:
    path = corpus.directory / "train/00002.tar"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00002\.tar has sha256 .*; the manifest says .*restore the file or build"):
        verify_corpus(corpus.directory)


def test_of_several_damaged_shards_the_first_is_named(corpus: Corpus) -> None:
    for name in ("train/00002.tar", "validation/00000.tar", "train/00001.tar"):
        path = corpus.directory / name
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"train/00001\.tar has sha256"):
        verify_corpus(corpus.directory)


def test_a_tar_that_cannot_be_read_is_named(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pipeline.shards.verify.sha256_of_file", refuse)
    with pytest.raises(UserError, match=r"00000\.tar cannot be read \(Permission denied\)\. Check its owner, its mode"):
        verify_corpus(corpus.directory)


def test_truncated_missing_and_stray_shards_are_named(corpus: Corpus) -> None:
    path = corpus.directory / "train/00002.tar"
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(UserError, match=rf"00002\.tar has 1000 bytes; the manifest says {len(content)}"):
        verify_corpus(corpus.directory)
    path.unlink()
    with pytest.raises(UserError, match=r"The shard .*00002\.tar does not exist"):
        verify_corpus(corpus.directory)
    path.write_bytes(content)
    (corpus.directory / "train/00003.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"00003\.tar is not in the manifest, which lists 3 shards of 'train'"):
        verify_corpus(corpus.directory)


def test_truncation_behind_an_accepted_digest_is_no_tar(corpus: Corpus) -> None:
    path = corpus.directory / "train/00001.tar"
    path.write_bytes(path.read_bytes()[:900])
    corpus.accept_shard(1)
    with pytest.raises(UserError, match=r"00001\.tar is not a readable tar .*truncated or damaged"):
        verify_corpus(corpus.directory)


def test_index_with_other_lengths_of_the_same_sum_is_found(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.idx"
    item_bytes, lengths, blocks = parse_index(path.read_bytes(), str(path))
    swapped = lengths.copy()
    other = int(np.flatnonzero(lengths != lengths[0])[0])
    swapped[[0, other]] = lengths[[other, 0]]
    path.write_bytes(index_bytes(item_bytes, swapped, blocks))
    corpus.accept_shard(0)
    with pytest.raises(
        UserError, match=r"00000\.idx is not the index of .*00000\.tar: a document's length, its place or"
    ):
        verify_corpus(corpus.directory)


def test_tokenizer_is_checked(corpus: Corpus) -> None:
    (corpus.directory / "tokenizer/tokenizer.json").write_text("other")
    with pytest.raises(UserError, match=r"tokenizer\.json has sha256"):
        verify_corpus(corpus.directory)


def record(members: dict[str, bytes]) -> bytes:
    """One tar record and the end of the tar."""
    parts = []
    for name, content in members.items():
        parts += [tar_header(name, len(content)), content, bytes(padded(len(content)) - len(content))]
    return b"".join(parts) + bytes(1024)


GOOD: dict[str, bytes] = {
    "000000.tokens.npy": npy_bytes(np.array([7, 8, 9], np.uint16)),
    "000000.documents.npy": npy_bytes(np.array([0, 2, 3], np.uint32)),
    "000000.sentences.npy": npy_bytes(np.array([0, 1, 2, 3], np.uint32)),
    "000000.words.npy": npy_bytes(np.array([0b101], np.uint8)),
    "000000.ids.json": json.dumps(["a", "b"]).encode(),
}


def with_member(name: str, content: bytes) -> dict[str, bytes]:
    return {**GOOD, name: content}


def words(*values: int) -> bytes:
    return npy_bytes(np.array(values, np.uint8))


def numbers(*values: int) -> bytes:
    return npy_bytes(np.array(values, np.uint32))


BAD: list[tuple[Callable[[], dict[str, bytes]], str]] = [
    (
        lambda: {name: content for name, content in GOOD.items() if "ids" not in name},
        r"words\.npy is not block 000000 with tokens",
    ),
    (
        lambda: {name.replace("000000", "000001"): content for name, content in GOOD.items()},
        r"record '000001' with .* is not block",
    ),
    (lambda: with_member("000000.documents.npy", numbers(0, 2)), "do not cover the 3 tokens"),
    (lambda: with_member("000000.documents.npy", numbers(0, 0, 3)), "do not cover the 3 tokens"),
    (lambda: with_member("000000.documents.npy", numbers(0, 2, 3)[:-1]), r"documents\.npy has 139 bytes"),
    (lambda: with_member("000000.tokens.npy", npy_bytes(np.array([7, 8, 9], np.int16))), "not a 1-D array of uint16"),
    (lambda: with_member("000000.tokens.npy", npy_bytes(np.array([7, 8, 50], np.uint16))), "token id 50 is outside"),
    (lambda: with_member("000000.ids.json", b'["a"]'), "does not list 2 document ids"),
    (lambda: with_member("000000.ids.json", b'["a"'), r"ids\.json is not JSON"),
    (lambda: with_member("000000.sentences.npy", numbers(0, 1, 3)), "do not include every document's boundary"),
    (lambda: with_member("000000.sentences.npy", numbers(0, 2)), "do not include every document's boundary"),
    (lambda: with_member("000000.words.npy", words(0b001)), "word starts are not one bit for each of 3 tokens"),
    (lambda: with_member("000000.words.npy", words(0b1101)), "word starts are not one bit for each of 3 tokens"),
    (lambda: with_member("000000.words.npy", words(0b101, 0)), "word starts are not one bit for each of 3 tokens"),
    (lambda: dict(reversed(GOOD.items())), "is not block 000000 with tokens"),
]


def test_a_good_record_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(record(GOOD))
    _, lengths, _ = parse_index(rebuild_index(tmp_path / "x.tar", 50, sentences=True, words=True), "x.idx")
    assert lengths.tolist() == [2, 1]


@pytest.mark.parametrize(("members", "message"), BAD)
def test_records_that_do_not_fit_together_are_named(
    tmp_path: Path, members: Callable[[], dict[str, bytes]], message: str
) -> None:
    (tmp_path / "x.tar").write_bytes(record(members()))
    with pytest.raises(UserError, match=rf"x\.tar: .*{message}"):
        rebuild_index(tmp_path / "x.tar", 50, sentences=True, words=True)
