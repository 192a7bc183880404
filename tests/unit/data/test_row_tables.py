"""Rows of every shard: closed forms, counted tables and what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.data.packing import PACKINGS, Packing
from pipeline.data.pieces import ShardLengths
from pipeline.data.row_format import row_format
from pipeline.data.row_tables import count_rows, rows_per_shard, table_name
from pipeline.data.rows import RowFormat
from pipeline.data.source import OpenSource, Source
from pipeline.shards.files import LocalFiles
from tests.corpora import Corpus, random_lengths, write_corpus


def count(corpus: Corpus, packing: Packing, form: RowFormat) -> np.ndarray:
    return rows_per_shard(OpenSource(Source(corpus.files, corpus.manifest), 0, "train", 4), packing, form)


def test_closed_form_of_the_manifest_equals_counting(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 4, 30))
    for kind in ("bert", "gpt"):
        form = row_format(corpus.manifest, kind, 32)
        found = count(corpus, PACKINGS["concatenate"], form)
        expected = [
            PACKINGS["concatenate"].count_rows(ShardLengths(np.array([len(d.tokens) for d in documents])), form)
            for documents in corpus.documents["train"]
        ]
        assert found.tolist() == expected
    assert not (corpus.directory / "rows").exists()


def test_counted_table_is_kept_and_read_again(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 4, 30))
    form, packing = row_format(corpus.manifest, "bert", 32), PACKINGS["best_fit"]
    counted = count(corpus, packing, form)
    path = corpus.directory / table_name("train", corpus.manifest.splits["train"], packing, form)
    assert path.name.startswith(f"best_fit-{packing.version}-32-2.train-")
    assert np.load(path).tolist() == counted.tolist()
    for index in (corpus.directory / "train").glob("*.idx"):
        index.rename(index.with_suffix(".away"))  # so it cannot be counted again
    np.testing.assert_array_equal(count(corpus, packing, form), counted)


def test_a_damaged_or_renamed_table_is_counted_again(tmp_path: Path) -> None:
    """One shard's rows shift those of all others: nobody would notice until that shard is read."""
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 4, 30))
    form, packing = row_format(corpus.manifest, "bert", 32), PACKINGS["best_fit"]
    counted = count(corpus, packing, form)
    path = corpus.directory / table_name("train", corpus.manifest.splits["train"], packing, form)
    content = path.read_bytes()
    for place in (0, 100, 128, 128 + 4 * 4 - 1, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        np.testing.assert_array_equal(count(corpus, packing, form), counted)
    longer = row_format(corpus.manifest, "bert", 64)
    expected = count(corpus, packing, longer)
    path.rename(corpus.directory / table_name("train", corpus.manifest.splits["train"], packing, longer))
    np.testing.assert_array_equal(count(corpus, packing, longer), expected)
    assert expected.sum() < counted.sum()


@pytest.mark.parametrize("content", [b"", b"not a table", None])
def test_a_kept_table_that_does_not_fit_is_counted_again(tmp_path: Path, content: bytes | None) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 4, 30))
    form, packing = row_format(corpus.manifest, "bert", 32), PACKINGS["best_fit"]
    path = corpus.directory / table_name("train", corpus.manifest.splits["train"], packing, form)
    path.parent.mkdir()
    if content is None:
        np.save(path, np.zeros(3, np.int32))
    else:
        path.write_bytes(content)
    assert len(count(corpus, packing, form)) == 4
    assert np.load(path).shape == (4,)


def test_a_corpus_that_cannot_be_written_is_counted_at_every_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 2, 30))

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    form, packing = row_format(corpus.manifest, "bert", 32), PACKINGS["best_fit"]
    counted = count(corpus, packing, form)
    assert (counted > 0).all()
    assert not list((corpus.directory / "rows").glob("*.npy"))
    with pytest.raises(UserError, match=r"counted, but .*rows/best_fit.*npy could not be written\. Check the owner"):
        count_rows(corpus.directory, "best_fit", "bert", 32)
    assert count_rows(corpus.directory, "concatenate", "bert", 32)["rows_train"] > 0  # which needs no table


class FarFiles(LocalFiles):
    """A remote corpus whose server is down."""

    is_remote = True

    def read(self, name: str, sha256: str | None = None) -> bytes:
        raise UserError(f"{name} could not be fetched")


def test_a_table_that_cannot_be_had_is_not_called_missing(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 2, 30))
    far = OpenSource(Source(FarFiles(corpus.directory), corpus.manifest), 0, "train", 4)
    with pytest.raises(UserError, match=r"^rows/best_fit.*could not be fetched$"):
        rows_per_shard(far, PACKINGS["best_fit"], row_format(corpus.manifest, "bert", 32))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("documents", (1 << 24) + 1, r"Shard train/00001 has 16777217 documents; at most 16777216 can be shuffled"),
        ("bytes", (1 << 33) + 1, r"Shard train/00001 has 8589934593 bytes; rows can be made of at most 8589934592\."),
    ],
)
def test_shards_that_a_plan_cannot_number_are_refused(tmp_path: Path, column: str, value: int, message: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 2, 30))
    getattr(corpus.manifest.splits["train"], column)[1] = value
    with pytest.raises(UserError, match=message + r".* Build the corpus with"):
        count(corpus, PACKINGS["best_fit"], row_format(corpus.manifest, "bert", 32))


def test_rows_of_pairs_are_counted_from_the_sentences(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 2, 30))
    packing, form = PACKINGS["pairs_nsp"], row_format(corpus.manifest, "bert", 32, pairs=True)
    expected = []
    for documents in corpus.documents["train"]:
        starts = [document.sentences for document in documents]
        sentences = [np.diff(own, append=len(document.tokens)) for own, document in zip(starts, documents, strict=True)]
        lengths = ShardLengths(
            np.array([len(document.tokens) for document in documents]),
            np.concatenate(sentences),
            np.cumsum([0, *(len(own) for own in sentences)]),
        )
        expected.append(packing.count_rows(lengths, form))
    assert count(corpus, packing, form).tolist() == expected
