"""Damaged corpora: one error that names file and place, never a wrong token."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.files import LocalFiles
from pipeline.shards.index import read_index
from pipeline.shards.layout import index_bytes, parse_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from tests.corpora import Corpus, random_lengths, write_corpus

BLOCK = 2


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", random_lengths(0, 3, 40), words=True)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def open_first(corpus: Corpus) -> Shard:
    return Shard.open(corpus.files, "train", 0, corpus.manifest)


USES: list[Callable[[Shard, int], object]] = [
    lambda shard, document: shard.read(document),
    lambda shard, document: shard.document_ids([document]),
    lambda shard, document: shard.sentence_starts(document),
    lambda shard, document: shard.sentences(),
    lambda shard, document: shard.word_starts(int(shard.index.starts[document]), 1),
    lambda shard, document: shard.check_blocks(np.array([BLOCK, BLOCK])),
]


@pytest.mark.parametrize("use", USES)
def test_a_flipped_byte_anywhere_in_a_block_is_found_before_any_use_of_it(
    corpus: Corpus, use: Callable[[Shard, int], object]
) -> None:
    path = corpus.directory / "train/00000.tar"
    index = open_first(corpus).index
    begin, end = index.borders[BLOCK : BLOCK + 2].tolist()
    document = int(index.blocks["first_document"][BLOCK])
    for place in (begin, begin + 600, (begin + end) // 2, end - 1):  # a header, tokens, another member, padding
        flip(path, place)
        shard = open_first(corpus)
        shard.read(document - 1)  # other blocks stay usable
        with pytest.raises(
            UserError,
            match=rf"00000\.tar: block 000002 \(bytes {begin} to {end}\) has XXH3 checksum [0-9a-f]{{16}}; the index "
            r"says [0-9a-f]{16}: its bytes have changed.*corpus verify",
        ):
            use(shard, document)
        flip(path, place)


def test_truncated_tar_names_both_sizes(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.tar"
    content = path.read_bytes()
    for kept in (0, 1, len(content) - 512):
        path.write_bytes(content[:kept])
        with pytest.raises(UserError, match=rf"00000\.tar has {kept} bytes; the manifest says {len(content)}"):
            open_first(corpus)


def test_a_tar_that_shrinks_while_it_is_open_is_named_and_does_not_kill(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.tar"
    size = path.stat().st_size
    shard = open_first(corpus)
    shard.read(0)
    os.truncate(path, 4096)
    with pytest.raises(UserError, match=rf"00000\.tar has 4096 bytes; it had {size} when it was opened"):
        shard.read(shard.documents - 1)


def test_missing_files_are_named(corpus: Corpus) -> None:
    (corpus.directory / "train/00001.tar").unlink()
    with pytest.raises(UserError, match=r"The shard .*00001\.tar does not exist"):
        Shard.open(corpus.files, "train", 1, corpus.manifest)
    (corpus.directory / "train/00002.idx").unlink()
    with pytest.raises(UserError, match=r"The shard index .*00002\.idx does not exist.*corpus verify"):
        Shard.open(corpus.files, "train", 2, corpus.manifest)


def test_index_of_another_shard_with_the_same_counts_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[20, 30], [30, 20]])
    one, other = (corpus.directory / f"train/0000{number}.idx" for number in (0, 1))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(UserError, match=r"00000\.idx has sha256 .*; the manifest says .*the index of another shard"):
        read_index(corpus.files, "train", 0, corpus.manifest)


def test_tar_of_another_shard_of_the_same_size_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[20, 30], [30, 20]])
    one, other = (corpus.directory / f"train/0000{number}.tar" for number in (0, 1))
    one.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"00000\.tar: block 000000 \(bytes 0 to .* has XXH3 checksum"):
        open_first(corpus).read(0)


def test_token_id_beyond_the_vocabulary_names_its_place(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[400, 400], [5]])
    shard = open_first(corpus)
    document = shard.read(1)
    manifest = replace(corpus.manifest, vocab_size=int(document.max()))
    shard = Shard.open(corpus.files, "train", 0, manifest)
    place = 2 * (int(shard.index.starts[1]) + int(document.argmax()))
    with pytest.raises(
        UserError,
        match=rf"00000\.tar: block 000001 \(bytes \d+ to \d+\) has token id {document.max()} at byte {place}, which is "
        rf"outside the vocabulary of {document.max()} ids",
    ):
        shard.check_blocks(np.array([1]))


INDEXES: list[tuple[Callable[[np.ndarray], object], str]] = [
    (lambda blocks: blocks["first_document"].__setitem__(-1, 0), r"the blocks do not cover its \d+ documents in order"),
    (lambda blocks: blocks["first_document"].__setitem__(0, 1), r"the blocks do not cover its \d+ documents in order"),
    (lambda blocks: blocks["first_document"].__setitem__(-1, 1000), "the blocks do not cover"),
    (lambda blocks: blocks["first_item"].__setitem__(0, 3), r"documents lie outside their blocks in the \d+ bytes"),
    (lambda blocks: blocks["first_item"].__setitem__(-1, 1 << 40), "documents lie outside their blocks"),
    (lambda blocks: blocks["first_item"].__setitem__(-1, (1 << 64) - 1), "documents lie outside their blocks"),
]


@pytest.mark.parametrize(("change", "message"), INDEXES)
def test_an_index_that_its_writer_got_wrong_is_refused(
    corpus: Corpus, change: Callable[[np.ndarray], object], message: str
) -> None:
    path = corpus.directory / "train/00000.idx"
    item_bytes, lengths, blocks = parse_index(path.read_bytes(), str(path))
    changed = blocks.copy()
    change(changed)
    path.write_bytes(index_bytes(item_bytes, lengths, changed))
    corpus.accept_shard(0)
    with pytest.raises(UserError, match=rf"00000\.idx: {message}"):
        read_index(corpus.files, "train", 0, corpus.manifest)


def test_a_document_without_tokens_is_refused(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.idx"
    item_bytes, lengths, blocks = parse_index(path.read_bytes(), str(path))
    moved = lengths.copy()
    moved[3:5] = 0, lengths[3] + lengths[4]
    path.write_bytes(index_bytes(item_bytes, moved, blocks))
    corpus.accept_shard(0)
    with pytest.raises(UserError, match=r"00000\.idx: document 3 of the shard has no tokens"):
        read_index(corpus.files, "train", 0, corpus.manifest)


@pytest.mark.parametrize(("place", "value"), [(5, 3_000_000_000), (5, 0), (-1, 70_000), (0, 1)])
def test_sentences_that_their_writer_got_wrong_are_refused(corpus: Corpus, place: int, value: int) -> None:
    shard = open_first(corpus)
    sentences = shard._sentences_of(0).copy()
    sentences[place] = value
    shard._sentences_of = lambda block: sentences  # type: ignore[method-assign]  # as if the tar had been written so
    with pytest.raises(UserError, match=r"00000\.tar: the sentences of block 000000 do not divide its \d+ documents"):
        shard.sentences()


def test_index_with_other_counts_than_the_manifest_names_both(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.idx"
    path.write_bytes((corpus.directory / "train/00001.idx").read_bytes())
    corpus.accept_shard(0)
    table = corpus.manifest.splits["train"]
    found, expected = (f"{table.documents[n]} documents and {table.tokens[n]} tokens" for n in (1, 0))
    with pytest.raises(UserError, match=rf"00000\.idx lists {found} of 2 bytes; the manifest says\s+{expected}"):
        read_index(corpus.files, "train", 0, corpus.manifest)


@pytest.mark.parametrize("name", ["../outside.idx", "train/../../outside.idx", "/etc/hostname"])
def test_a_name_that_leads_outside_is_refused(corpus: Corpus, name: str) -> None:
    (corpus.directory.parent / "outside.idx").write_bytes(b"secret")
    for use in (corpus.files.read, corpus.files.open):
        with pytest.raises(UserError, match=r"leads outside the corpus directory .*a corpus holds its own files"):
            use(name)


def read_all(corpus: Corpus) -> None:
    read_manifest(corpus.files)
    open_first(corpus)
    corpus.files.tokenizer_directory()


@pytest.mark.parametrize("name", ["train/00000.idx", "train/00000.tar", "train", "manifest.json", "tokenizer"])
def test_a_link_that_leads_outside_is_refused(corpus: Corpus, name: str) -> None:
    path, outside = corpus.directory / name, corpus.directory.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(
        UserError, match=rf"{name}.* leads outside the corpus directory .*\(to .*outside.*\): .*Copy the file in place"
    ):
        read_all(corpus)


def test_links_inside_the_corpus_and_to_it_are_followed(corpus: Corpus, tmp_path: Path) -> None:
    path = corpus.directory / "train/00000.tar"
    path.rename(corpus.directory / "elsewhere.tar")
    path.symlink_to("../elsewhere.tar")
    (tmp_path / "link").symlink_to(corpus.directory)
    shard = Shard.open(LocalFiles(tmp_path / "link"), "train", 0, corpus.manifest)
    np.testing.assert_array_equal(shard.read(0), corpus.documents["train"][0][0].tokens)


def test_what_cannot_be_read_is_named(corpus: Corpus) -> None:
    path = corpus.directory / "train/00000.idx"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"00000\.idx cannot be read \(Is a directory\)\. Check its owner, its mode"):
        read_index(corpus.files, "train", 0, corpus.manifest)


@pytest.mark.parametrize("name", ["train/00000.idx", "train/00000.tar", "manifest.json"])
def test_links_in_a_circle_and_pipes_are_named(corpus: Corpus, name: str) -> None:
    path = corpus.directory / name
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match=rf"{name} cannot be read \(Too many levels of symbolic links\)"):
        read_all(corpus)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{name} is not a plain file\. Restore the file"):
        read_all(corpus)
