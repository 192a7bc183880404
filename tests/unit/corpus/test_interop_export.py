"""Exports, and round trips in both directions with the real `datasets` library and with bytes packed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from rich.console import Console

from pipeline.config.corpus import ShardConfig, SourceConfig
from pipeline.corpus.build import build_corpus
from pipeline.corpus.exporting import export_corpus
from pipeline.corpus.importing import import_corpus
from pipeline.corpus.tokenizer import TokenizerFacts
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from tests.unit.corpus.foreign_files import (
    documents_of,
    in_sentences,
    megatron_pair,
    random_documents,
    whole,
    write_pair,
    write_tokenizer,
)
from tests.unit.corpus.writing import config_of, files_of, make_texts, write_jsonl

SMALL = ShardConfig(tokens=900, documents=40, block_tokens=200)


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerFacts]:
    directory = tmp_path_factory.mktemp(request.param) / "tokenizer"
    return directory, write_tokenizer(directory, request.param)


def imported(source: Path, output: Path, tokenizer: Path, validation_share: float | None = 0.0) -> Path:
    options: Any = {"shards": SMALL, "validation_share": validation_share, "console": Console(quiet=True)}
    import_corpus(source, output, tokenizer=str(tokenizer), **options)
    return output


def exported(corpus: Path, output: Path, form: str, **options: Any) -> Any:
    return export_corpus(corpus, output, form=form, console=Console(quiet=True), **options)


def foreign(facts: TokenizerFacts, count: int = 120) -> list[list[list[int]]]:
    documents = random_documents(count, special=facts.all_special_ids, vocab_size=facts.vocab_size)
    return [in_sentences(document, number) for number, document in enumerate(documents)]


@pytest.mark.parametrize("sentences", [False, True])
def test_megatron_to_corpus_to_megatron_is_the_same_bytes(
    tmp_path: Path, tokenizer: tuple[Path, TokenizerFacts], sentences: bool
) -> None:
    directory, facts = tokenizer
    eod = facts.special_ids["eos"]
    documents = foreign(facts)
    if not sentences:
        documents = [[whole(document)] for document in documents]
    if eod is not None:
        documents = [[*document[:-1], [*document[-1], eod]] for document in documents]
    source = write_pair(tmp_path / "text", documents)
    corpus = imported(source, tmp_path / "corpus", directory)
    summary = exported(corpus, tmp_path / "out", "megatron", sentences=sentences)
    assert (tmp_path / "out/train.bin").read_bytes() == (tmp_path / "text.bin").read_bytes()
    assert (tmp_path / "out/train.idx").read_bytes() == (tmp_path / "text.idx").read_bytes()
    assert summary.append_eod == (eod is not None)
    tokens = sum(len(sentence) for document in documents for sentence in document)
    assert summary.splits == {"train": {"documents": 120, "tokens": tokens}}
    assert files_of(tmp_path / "out/tokenizer") == files_of(corpus / "tokenizer")


@pytest.mark.parametrize("form", ["megatron", "datasets"])
def test_a_corpus_comes_back_from_an_export_with_the_same_shards(
    tmp_path: Path, tokenizer: tuple[Path, TokenizerFacts], form: str
) -> None:
    directory, facts = tokenizer
    corpus = imported(write_pair(tmp_path / "text", foreign(facts)), tmp_path / "corpus", directory, 0.1)
    exported(corpus, tmp_path / "out", form, sentences=True)
    # The tokenizer of the export is that of the corpus, byte for byte, or the import refuses.
    again = imported(tmp_path / "out", tmp_path / "again", tmp_path / "out/tokenizer", None)
    first, second = read_manifest(LocalFiles(corpus)), read_manifest(LocalFiles(again))
    assert sorted(second.splits) == ["train", "validation"]
    assert second.has_sentences
    for split in first.splits:
        if form == "datasets":  # it keeps the names too: the shards have the same bytes
            assert second.splits[split].sha256 == first.splits[split].sha256
        tokens = list(documents_of(again, split).values())
        assert tokens == list(documents_of(corpus, split).values())
    assert second.tokenizer_fingerprint == first.tokenizer_fingerprint


def test_a_data_set_comes_back_with_the_same_rows(tmp_path: Path, tokenizer: tuple[Path, TokenizerFacts]) -> None:
    directory, facts = tokenizer
    documents = [whole(document) for document in foreign(facts)]
    rows = {"id": [f"é {number}" for number in range(120)], "input_ids": documents}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    corpus = imported(tmp_path / "saved", tmp_path / "corpus", directory)
    for output in ("one", "two"):
        exported(corpus, tmp_path / output, "datasets")
    loaded = datasets.load_from_disk(str(tmp_path / "one"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert loaded["train"].to_dict() == rows
    assert str(loaded["train"].split) == "train"
    assert loaded["train"].features["input_ids"] == datasets.List(datasets.Value("int32"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_sentence_starts_and_appended_ends_in_rows(tmp_path: Path, tokenizer: tuple[Path, TokenizerFacts]) -> None:
    directory, facts = tokenizer
    documents = foreign(facts)
    corpus = imported(write_pair(tmp_path / "text", documents), tmp_path / "corpus", directory)
    eod = facts.special_ids["eos"]
    exported(corpus, tmp_path / "out", "datasets", sentences=True, append_eod=eod is not None)
    rows = datasets.load_from_disk(str(tmp_path / "out"))["train"]
    assert rows["input_ids"][:] == [whole(document) + ([] if eod is None else [eod]) for document in documents]
    assert rows["sentence_starts"][:] == [np.cumsum([0, *map(len, document[:-1])]).tolist() for document in documents]


def test_ends_of_documents_can_be_left_out_and_splits_chosen(
    tmp_path: Path, tokenizer: tuple[Path, TokenizerFacts]
) -> None:
    directory, facts = tokenizer
    corpus = imported(write_pair(tmp_path / "text", foreign(facts)), tmp_path / "corpus", directory, 0.2)
    summary = exported(corpus, tmp_path / "out", "megatron", append_eod=False, splits=["validation"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "tokenizer", "validation.bin", "validation.idx"
    ]  # fmt: skip
    documents = [[document] for document in documents_of(corpus, "validation").values()]
    binary, index = megatron_pair(documents)
    assert (tmp_path / "out/validation.bin").read_bytes() == binary
    assert (tmp_path / "out/validation.idx").read_bytes() == index
    assert summary.lines()[1].startswith(f"  validation: {len(documents)} documents, ")
    assert summary.as_dict()["append_eod"] is False


def test_a_corpus_built_from_text_comes_back_byte_for_byte(tmp_path: Path) -> None:
    records = [{"text": text} for text in make_texts(200)]
    source = SourceConfig("a", "jsonl", str(write_jsonl(tmp_path / "a.jsonl", records)))
    config = config_of(source)
    build_corpus(config, tmp_path / "built", processes=1, console=Console(quiet=True))
    exported(tmp_path / "built", tmp_path / "out", "datasets", sentences=True)
    import_corpus(
        tmp_path / "out",
        tmp_path / "again",
        tokenizer=str(tmp_path / "built/tokenizer"),
        shards=config.shards,
        console=Console(quiet=True),
    )
    first, second = (read_manifest(LocalFiles(tmp_path / name)) for name in ("built", "again"))
    # Sentences came along; words were found anew from `##`, and are those of the tokenizer's offsets.
    assert first.has_words
    assert first.has_sentences
    assert second.fingerprint == first.fingerprint
    assert second.extra["validation_unigram_entropy"] == first.extra["validation_unigram_entropy"]
