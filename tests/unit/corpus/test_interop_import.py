"""Imports: the tokens and borders of the source, in its order, in a corpus that verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from pipeline.config.corpus import ShardConfig
from pipeline.corpus.importing import import_corpus
from pipeline.corpus.text_store import id_keys
from pipeline.corpus.token_source import BATCH_TOKENS
from pipeline.corpus.tokenizer import TokenizerFacts
from pipeline.data.stream import open_stream
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.foreign_files import (
    documents_of,
    in_sentences,
    random_documents,
    write_pair,
    write_tokenizer,
)
from tests.unit.corpus.writing import files_of

SMALL = ShardConfig(tokens=900, documents=40, block_tokens=200)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerFacts]:
    directory = tmp_path_factory.mktemp("gpt2") / "tokenizer"
    return directory, write_tokenizer(directory, "gpt2")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerFacts]:
    directory = tmp_path_factory.mktemp("bert") / "tokenizer"
    return directory, write_tokenizer(directory, "bert")


def imported(source: Path, output: Path, tokenizer: Path, **options: Any) -> Any:
    options = {"shards": SMALL, **options}
    console = Console(file=open(output.with_suffix(".log"), "w"), width=200)  # noqa: SIM115 - ends with the test
    return import_corpus(source, output, tokenizer=str(tokenizer), console=console, **options)


def text_documents(facts: TokenizerFacts, count: int, seed: int = 0) -> list[list[int]]:
    return random_documents(count, special=facts.all_special_ids, vocab_size=facts.vocab_size, seed=seed)


def test_a_megatron_pair_becomes_a_corpus(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    eod = facts.vocab_size - 1
    documents = text_documents(facts, 150)
    source = write_pair(tmp_path / "text_document", [[[*document, eod]] for document in documents])
    summary = imported(source, tmp_path / "out", tokenizer, validation_share=0.1)
    train, validation = documents_of(tmp_path / "out"), documents_of(tmp_path / "out", "validation")
    expected = {f"text_document/{number}": document for number, document in enumerate(documents)}
    held_out = {name for name in expected if (id_keys(name, 0)[0] >> 11) * 2.0**-53 < 0.1}
    assert 5 < len(held_out) < 30
    assert list(train.items()) == [(name, expected[name]) for name in expected if name not in held_out]
    assert list(validation.items()) == [(name, expected[name]) for name in expected if name in held_out]
    manifest = read_manifest(LocalFiles(tmp_path / "out"))
    assert len(manifest.splits["train"]) > 3
    assert manifest.splits["train"].documents.max() <= 41
    assert not manifest.has_sentences
    assert not manifest.has_words
    assert manifest.extra["validation_unigram_entropy"] > 0
    (provenance,) = manifest.sources
    assert provenance["kind"] == "megatron"
    assert (provenance["records"], provenance["documents"], provenance["stripped_special_ids"]) == (150, 150, 150)
    assert "150 special ids were left out: rows add their own" in summary.notes
    assert any("no whole-word or span masking" in note for note in summary.notes)
    verify_corpus(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert "Importing tokens" in (tmp_path / "out.log").read_text()


def test_the_same_import_gives_the_same_bytes(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    source = write_pair(tmp_path / "a", [[document] for document in text_documents(facts, 60)])
    for output in ("one", "two"):
        imported(source, tmp_path / output, tokenizer)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_sequences_are_sentences_and_wordpiece_tells_words(tmp_path: Path, bert: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = bert
    documents = [in_sentences(document, number) for number, document in enumerate(text_documents(facts, 50))]
    source = write_pair(tmp_path / "text_sentence", documents, code=4)
    imported(source, tmp_path / "out", tokenizer, validation_share=0.0)
    manifest = read_manifest(LocalFiles(tmp_path / "out"))
    assert manifest.has_sentences
    assert manifest.has_words
    assert list(manifest.splits) == ["train"]
    pieces = _tokens_of(tokenizer)
    number = 0
    for shard_number in range(len(manifest.splits["train"])):
        shard = Shard.open(LocalFiles(tmp_path / "out"), "train", shard_number, manifest)
        for document in range(shard.documents):
            sentences = documents[number]
            tokens = [token for sentence in sentences for token in sentence]
            assert shard.read(document).tolist() == tokens
            assert shard.sentence_starts(document).tolist() == np.cumsum([0, *map(len, sentences[:-1])]).tolist()
            words = shard.word_starts(int(shard.index.starts[document]), len(tokens))
            expected = [place == 0 or not pieces[token].startswith("##") for place, token in enumerate(tokens)]
            assert words.tolist() == expected
            number += 1
    assert number == 50
    verify_corpus(tmp_path / "out")
    stream = open_stream(tmp_path / "out", kind="bert", sequence_length=64, global_batch_size=4, words=True)
    assert stream.rows(0).word_starts is not None


def _tokens_of(tokenizer: Path) -> dict[int, str]:
    from tokenizers import Tokenizer

    return {n: token for token, n in Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab().items()}


def test_a_document_is_cut_at_an_end_of_document_inside(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    eod = facts.vocab_size - 1
    documents = [[[5, 6, eod, eod, 7, eod]], [[8, 9]], [[eod]], [[1, eod, 2]]]
    summary = imported(write_pair(tmp_path / "a", documents), tmp_path / "out", tokenizer, validation_share=0.0)
    assert documents_of(tmp_path / "out") == {
        "a/0.0": [5, 6], "a/0.1": [7], "a/1": [8, 9], "a/3.0": [1], "a/3.1": [2]
    }  # fmt: skip
    assert summary.drops == {"only_special_ids": 1}
    assert "documents were cut at an end-of-document id inside: 2 times" in summary.notes


def test_joined_documents_fill_shards_as_others_do(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    documents = text_documents(facts, 300)
    joined = [token for document in documents for token in (*document, facts.vocab_size - 1)]
    imported(write_pair(tmp_path / "a", [[joined]]), tmp_path / "out", tokenizer)
    assert documents_of(tmp_path / "out") == {f"a/0.{number}": document for number, document in enumerate(documents)}
    table = read_manifest(LocalFiles(tmp_path / "out")).splits["train"]
    assert len(table) >= len(joined) // 1000
    assert table.tokens.max() <= SMALL.tokens + 60
    assert table.documents.max() <= SMALL.documents + 1


def test_a_folder_of_pairs_keeps_its_splits(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    documents = {split: text_documents(facts, 30, seed) for seed, split in enumerate(("train", "validation", "test"))}
    for split, of_split in documents.items():
        write_pair(tmp_path / "pairs" / split, [[document] for document in of_split])
    imported(tmp_path / "pairs", tmp_path / "out", tokenizer, name="web")
    for split in ("train", "validation"):
        expected = {f"web/{split}/{number}": document for number, document in enumerate(documents[split])}
        assert documents_of(tmp_path / "out", split) == expected
    imported(tmp_path / "pairs", tmp_path / "one", tokenizer, splits=["test"], validation_share=0.2)
    both = documents_of(tmp_path / "one") | documents_of(tmp_path / "one", "validation")
    assert both == {f"pairs/{number}": document for number, document in enumerate(documents["test"])}
    assert [source["split"] for source in read_manifest(LocalFiles(tmp_path / "one")).sources] == ["test"]


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_saved_data_set(tmp_path: Path, bert: tuple[Path, TokenizerFacts], with_ids: bool) -> None:
    tokenizer, facts = bert
    cls, sep, pad = (facts.special_ids[name] for name in ("cls", "sep", "pad"))
    documents = text_documents(facts, 300)
    rows = [[cls, *document, sep, *[pad] * (number % 3)] for number, document in enumerate(documents)]
    columns: dict[str, Any] = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    if with_ids:
        columns["id"] = [f"page {number} é" for number in range(300)]
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    imported(tmp_path / "saved", tmp_path / "out", tokenizer, validation_share=0.0)
    prefix = "page {} é" if with_ids else "saved/{}"
    assert list(documents_of(tmp_path / "out").items()) == [
        (prefix.format(number), document) for number, document in enumerate(documents)
    ]
    verify_corpus(tmp_path / "out")


def test_a_data_set_of_splits_and_chosen_rows(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    documents = text_documents(facts, 80)
    whole = datasets.Dataset.from_dict({"input_ids": documents, "id": list(range(80))})
    chosen = [*range(40, 80), *range(10)]
    splits = {"train": whole.select(chosen), "validation": whole.select(range(10, 20)), "test": whole.select([3])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    imported(tmp_path / "saved", tmp_path / "out", tokenizer)
    assert list(documents_of(tmp_path / "out").items()) == [(str(number), documents[number]) for number in chosen]
    expected = {str(number): documents[number] for number in range(10, 20)}
    assert documents_of(tmp_path / "out", "validation") == expected


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("train-0.parquet train-1.parquet", pyarrow.list_(pyarrow.int32())),
        ("train/a.parquet train/b.parquet", pyarrow.large_list(pyarrow.int64())),
        ("a.parquet b.parquet", pyarrow.list_(pyarrow.uint16())),
        ("train.parquet/a.parquet train.parquet/b.parquet", pyarrow.list_(pyarrow.int32())),
    ],
)
def test_a_folder_of_parquet(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts], names: str, kind: Any) -> None:
    tokenizer, facts = gpt2
    documents = text_documents(facts, 300)
    for name, part in zip(names.split(), (documents[:130], documents[130:]), strict=True):
        (tmp_path / "tokens" / name).parent.mkdir(parents=True, exist_ok=True)
        lists = pyarrow.array(part, kind)
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": lists}), tmp_path / "tokens" / name)
    imported(tmp_path / "tokens", tmp_path / "out", tokenizer, validation_share=0.0)
    assert list(documents_of(tmp_path / "out").values()) == documents


def test_documents_longer_than_a_batch_and_a_shard(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, facts = gpt2
    documents = text_documents(facts, 40)
    documents[7] = documents[7] * (BATCH_TOKENS // len(documents[7]) + 2)
    imported(write_pair(tmp_path / "a", [[document] for document in documents]), tmp_path / "out", tokenizer)
    both = documents_of(tmp_path / "out") | documents_of(tmp_path / "out", "validation")
    assert both == {f"a/{number}": document for number, document in enumerate(documents)}


def test_repeated_ids_are_told(tmp_path: Path, gpt2: tuple[Path, TokenizerFacts]) -> None:
    tokenizer, _ = gpt2
    rows = {"input_ids": [[1, 2], [3], [4]], "id": ["a", "b", "a"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    summary = imported(tmp_path / "saved", tmp_path / "out", tokenizer, validation_share=0.0)
    assert any(note.startswith("1 documents have the id of another one") for note in summary.notes)
