"""The manifest: reads back, and refuses what is not one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import ShardTable, check_tokenizer, read_manifest, write_manifest
from pipeline.shards.writer import ShardFacts
from tests.corpora import Corpus, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", [[5, 6], [7]])


def edit(corpus: Corpus, change: Callable[[dict[str, Any]], Any]) -> None:
    path = corpus.directory / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_manifest_reads_back(corpus: Corpus) -> None:
    found, written = read_manifest(corpus.files), corpus.manifest
    assert found.fingerprint == written.fingerprint
    for name in ("tokenizer_fingerprint", "vocab_size", "dtype", "special_ids", "all_special_ids", "drops", "extra"):
        assert getattr(found, name) == getattr(written, name), name
    assert found.dtype == "uint16"
    assert (found.has_sentences, found.has_words) == (True, False)
    for split, table in written.splits.items():
        assert found.splits[split].sha256 == table.sha256
        assert found.splits[split].index_sha256 == table.index_sha256
        for column in ("documents", "tokens", "bytes"):
            np.testing.assert_array_equal(getattr(found.splits[split], column), getattr(table, column))
    assert len(found.splits["train"]) == 2
    assert found.splits["train"].sha256_of(1) == written.splits["train"].sha256[64:]


COLUMNS: dict[str, Callable[[Any], Any]] = {
    "documents": lambda column: column + 1,
    "tokens": lambda column: column + 1,
    "bytes": lambda column: column + 1,
    "sha256": lambda joined: joined[::-1],
    "index_sha256": lambda joined: joined[::-1],
}


def test_fingerprint_covers_all_that_a_batch_depends_on_but_not_provenance(corpus: Corpus) -> None:
    manifest = corpus.manifest
    assert replace(manifest, sources=[], drops={}, extra={}).fingerprint == manifest.fingerprint
    train = manifest.splits["train"]
    changes: list[dict[str, Any]] = [
        {"tokenizer_fingerprint": "0"},
        {"vocab_size": 1001},
        {"special_ids": {**manifest.special_ids, "mask": 5}},
        {"all_special_ids": [0]},
        {"has_words": True},
        {"has_sentences": False},
        {"splits": {"train": train}},
    ]
    changes += [
        {"splits": {**manifest.splits, "train": replace(train, **{column: change(getattr(train, column))})}}
        for column, change in COLUMNS.items()
    ]
    found = {replace(manifest, **change).fingerprint for change in changes}
    assert len(found | {manifest.fingerprint}) == len(changes) + 1


def test_table_from_facts_sorts_by_number_and_refuses_gaps() -> None:
    facts = [
        ShardFacts(f"train/{number:05d}", number, number * 10, 512, f"{number:064x}", f"{9 - number:064x}")
        for number in (2, 0, 1)
    ]
    table = ShardTable.from_facts(facts)
    assert table.documents.tolist() == [0, 1, 2]
    assert table.sha256_of(2) == f"{2:064x}"
    assert table.index_sha256_of(2) == f"{7:064x}"
    with pytest.raises(ValueError, match="numbered from 0 in one split"):
        ShardTable.from_facts(facts[:1])
    assert len(ShardTable.from_facts([])) == 0


def test_missing_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No corpus at .*manifest\.json does not exist.*pretrain corpus build"):
        read_manifest(LocalFiles(tmp_path))


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda value: value.update(format="x"), "is not a corpus manifest"),
    (lambda value: value.update(format_version=3), r"format version 3; this program reads version 2\. Update pretrain"),
    (lambda value: value.pop("vocab_size"), "the key 'vocab_size' is missing"),
    (lambda value: value.update(vocab_size="many"), "is not valid: .*many"),
    (lambda value: value.update(vocab_size=1000.0), r"vocab_size: 1000\.0 is not a whole number from 0"),
    (lambda value: value.update(special_ids=None), "is not valid: "),
    (lambda value: value["special_ids"].update(pad="x"), "pad: 'x' is not a whole number from 0 to 999"),
    (lambda value: value["special_ids"].update(eos=1000), "eos: 1000 is not a whole number from 0 to 999"),
    (lambda value: value.update(all_special_ids=[-1]), "all_special_ids: -1 is not a whole number from 0 to 999"),
    (lambda value: value.update(sources=[None]), "is not valid: "),
    (lambda value: value.update(dtype="uint32"), "dtype is 'uint32', but 1000 ids are stored as uint16"),
    (lambda value: value["splits"].update({"../other": value["splits"]["train"]}), r"'\.\./other'.*outside the corpus"),
    (lambda value: value["splits"].update({"a/b": value["splits"]["train"]}), "'a/b'.*outside the corpus"),
    (lambda value: value["splits"].update({"..": value["splits"]["train"]}), r"'\.\.'.*outside the corpus"),
    (
        lambda value: value["splits"]["train"]["tokens"].pop(),
        "documents, tokens, bytes, sha256 and index_sha256 of 2, 1, 2, 2, 2 shards",
    ),
    (lambda value: value["splits"]["train"].update(sha256="ab" * 32), "of 2, 2, 2, 1, 2 shards"),
    (lambda value: value["splits"]["train"].update(index_sha256="x" * 128), "must be 64 hexadecimal digits a shard"),
    (lambda value: value.update(has_words="yes"), "'yes' is neither true nor false"),
    (lambda value: value["splits"]["train"]["tokens"].__setitem__(0, -1), "'train' has a negative count"),
    (lambda value: value.update(tokenizer_fingerprint="0" * 64), r"the fingerprint is .*edited or damaged: restore"),
    (lambda value: value["special_ids"].update(mask=5), r"the fingerprint is .*edited or damaged: restore"),
    (lambda value: value["splits"]["train"]["tokens"].__setitem__(0, 12), r"the fingerprint is .*edited or damaged"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_invalid_manifest_is_refused(corpus: Corpus, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(corpus, change)
    with pytest.raises(UserError, match=message):
        read_manifest(corpus.files)


def test_manifest_that_is_no_json_is_refused(corpus: Corpus) -> None:
    (corpus.directory / "manifest.json").write_text("<html><body>Sign in")
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON .*begins with b'<html>.*Give the folder"):
        read_manifest(corpus.files)


def test_a_manifest_that_would_not_read_back_is_not_written(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside the corpus"):
        write_manifest(tmp_path / "new", replace(corpus.manifest, splits={"../x": corpus.manifest.splits["train"]}))
    assert not (tmp_path / "new").exists()


def test_another_tokenizer_is_refused(corpus: Corpus) -> None:
    check_tokenizer(corpus.files, corpus.manifest)
    (corpus.directory / "tokenizer/tokenizer.json").write_text("{} ")
    with pytest.raises(UserError, match=r"tokenizer\.json has sha256 .*but the corpus was built with .*other text"):
        check_tokenizer(corpus.files, corpus.manifest)
    (corpus.directory / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: .*tokenizer\.json does not exist"):
        check_tokenizer(corpus.files, corpus.manifest)
