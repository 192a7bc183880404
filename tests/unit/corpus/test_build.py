"""A whole build on tiny inputs: what is in the shards, what is dropped and why, what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from pipeline.base.errors import UserError
from pipeline.config.corpus import CleaningConfig, CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus.cleaning import clean_text
from pipeline.corpus.dealing import unigram_entropy
from pipeline.corpus.sentences import sentence_starts
from pipeline.corpus.stats import corpus_stats, stats_lines
from pipeline.corpus.summary import BuildSummary
from pipeline.corpus.tokenizer import encoder
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.remote import TOKENIZER_FILES
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.writing import build, config_of, files_of, make_texts, refused, write_jsonl


def documents_in(directory: Path) -> dict[str, dict[str, tuple[list[int], list[int]]]]:
    """Split -> id -> tokens and sentence starts."""
    manifest = read_manifest(LocalFiles(directory))
    result: dict[str, dict[str, tuple[list[int], list[int]]]] = {}
    for split, table in manifest.splits.items():
        found = result.setdefault(split, {})
        for number in range(len(table)):
            shard = Shard.open(LocalFiles(directory), split, number, manifest)
            for document, name in enumerate(shard.document_ids(range(shard.documents))):
                starts = shard.sentence_starts(document).tolist()
                found[name] = (shard.read(document).tolist(), starts)
    return result


def all_kinds(directory: Path) -> tuple[CorpusConfig, dict[str, str]]:
    """Sources of every kind, and the text of every document by id."""
    texts = make_texts(60)
    (directory / "texts").mkdir(parents=True)
    expected = {}
    for number, text in enumerate(texts[:10]):
        (directory / f"texts/{number}.txt").write_text(text)
        expected[f"files/{number}.txt"] = text
    records = [{"text": text, "key": f"k{number}"} for number, text in enumerate(texts)]
    write_jsonl(directory / "lines.jsonl", records[10:20])
    expected |= {f"plain/k{number}": texts[number] for number in range(10, 20)}
    lines = write_jsonl(directory / "whole.jsonl", records[20:30]).read_bytes()
    (directory / "z").mkdir()
    (directory / "z/a.jsonl.gz").write_bytes(gzip.compress(lines))
    (directory / "z/b.jsonl.zst").write_bytes(
        zstandard.ZstdCompressor().compress(b"".join(json.dumps(record).encode() + b"\n" for record in records[30:40]))
    )
    expected |= {f"packed/a.jsonl.gz:{number + 1}": texts[20 + number] for number in range(10)}
    expected |= {f"packed/b.jsonl.zst:{number + 1}": texts[30 + number] for number in range(10)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[40:50]), directory / "t.parquet", row_group_size=3)
    expected |= {f"table/t.parquet:{number}": texts[40 + number] for number in range(10)}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[50:60]), directory / "hub.parquet")
    shutil.move(directory / "hub.parquet", (directory / "hub").mkdir() or directory / "hub/train.parquet")
    expected |= {f"hub/k{number}": texts[number] for number in range(50, 60)}
    sources = [
        SourceConfig("files", "text", str(directory / "texts")),
        SourceConfig("plain", "jsonl", str(directory / "lines.jsonl"), id_field="key"),
        SourceConfig("packed", "jsonl", str(directory / "z")),
        SourceConfig("table", "parquet", str(directory / "t.parquet")),
        SourceConfig("hub", "datasets", str(directory / "hub"), id_field="key"),
    ]
    return config_of(*sources), expected


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusConfig, dict[str, str], Path, BuildSummary, str]:
    directory = tmp_path_factory.mktemp("all_kinds")
    config, expected = all_kinds(directory)
    summary, printed = build(config, directory / "out")
    return config, expected, directory / "out", summary, printed


def test_every_document_of_every_kind_is_there_once(built: Any) -> None:
    config, expected, output, summary, _ = built
    found = documents_in(output)
    assert set(found["train"]) | set(found["validation"]) == set(expected)
    assert not set(found["train"]) & set(found["validation"])
    backend = encoder(output / "tokenizer")
    for document, (tokens, starts) in (found["train"] | found["validation"]).items():
        text = clean_text(expected[document])
        encoding = backend.encode(text, add_special_tokens=False)
        assert tokens == encoding.ids, document
        assert len(starts) == len(sentence_starts(text))
        for start, character in zip(starts, sentence_starts(text), strict=True):
            assert encoding.offsets[start][0] == character
    assert summary.documents == len(expected) == 60
    assert summary.tokens == sum(len(tokens) for split in found.values() for tokens, _ in split.values())
    assert summary.drops == {}
    assert config.sources[0].name == "files"


def test_the_manifest_tells_where_everything_came_from(built: Any) -> None:
    config, expected, output, *_ = built
    manifest = read_manifest(LocalFiles(output))
    assert [source["name"] for source in manifest.sources] == [source.name for source in config.sources]
    assert [source["documents"] for source in manifest.sources] == [10, 10, 20, 10, 10]
    files = manifest.sources[0]
    texts = [clean_text(text) for name, text in expected.items() if name.startswith("files/")]
    assert files["characters"] == sum(len(text) for text in texts)
    assert files["bytes"] == sum(len(text.encode()) for text in texts)
    assert (files["kind"], files["path"], files["records"], files["drops"]) == ("text", config.sources[0].path, 10, {})
    counts = np.zeros(manifest.vocab_size, np.int64)
    for tokens, _ in documents_in(output)["validation"].values():
        counts += np.bincount(tokens, minlength=manifest.vocab_size)
    assert manifest.extra["validation_unigram_entropy"] == unigram_entropy(counts) > 0
    assert len(manifest.splits["train"]) > 1


def test_the_result_verifies_and_nothing_else_is_left(built: Any) -> None:
    _, _, output, *_ = built
    verify_corpus(output)
    assert not (output / ".build").exists()
    names = {name.split("/")[0] for name in files_of(output)}
    assert names == {"manifest.json", "build_log.jsonl", "tokenizer", "train", "validation"}


def test_every_file_of_the_tokenizer_is_one_that_a_remote_corpus_mirrors(built: Any) -> None:
    _, _, output, *_ = built
    written = {path.name for path in (output / "tokenizer").iterdir()}
    assert "tokenizer.json" in written
    assert written <= set(TOKENIZER_FILES)


def test_stages_are_reported_in_plain_lines(built: Any) -> None:
    *_, summary, printed = built
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Reading and cleaning",
        "Finding duplicates",
        "Training tokenizer",
        "Tokenising",
        "Writing shards",
    ]
    assert "60 documents" in lines[1]
    text = "\n".join(summary.lines())
    assert "60 documents" in text
    assert "dropped: nothing" in text
    assert json.loads(json.dumps(summary.as_dict()))["documents"] == 60


def test_stats(built: Any) -> None:
    *_, output, summary, _ = built
    stats = corpus_stats(output)
    assert stats["splits"]["train"]["tokens"] == summary.splits["train"]["tokens"]
    lengths = [len(tokens) for tokens, _ in documents_in(output)["train"].values()]
    measured = stats["splits"]["train"]["document_tokens"]
    assert (measured["shortest"], measured["longest"]) == (min(lengths), max(lengths))
    assert measured["percentiles"]["50"] == int(np.percentile(lengths, 50))
    assert json.loads(json.dumps(stats))["fingerprint"] == summary.fingerprint
    text = "\n".join(stats_lines(stats))
    assert "source packed (jsonl" in text
    assert "sentence starts: yes, word starts: yes" in text
    assert "unigram entropy of the validation tokens" in text


def test_stats_of_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No corpus at .*manifest.json does not exist"):
        corpus_stats(tmp_path)


def test_the_same_config_again_finds_the_corpus_complete(built: Any) -> None:
    config, _, output, summary, _ = built
    before = files_of(output)
    again, printed = build(config, output)
    assert again.was_complete
    assert replace(again, was_complete=False, seconds=summary.seconds) == summary
    assert "complete already, nothing to do (whether its input changed" in again.lines()[0]
    assert printed == ""
    assert files_of(output) == before


def test_another_config_does_not_touch_a_corpus(built: Any) -> None:
    config, _, output, *_ = built
    before = files_of(output)
    message = refused(replace(config, seed=5), output)
    assert "holds a corpus built with another config" in message
    assert "Choose another --output" in message
    assert files_of(output) == before


def test_seed_moves_documents_and_tasks_do_not(built: Any, tmp_path: Path) -> None:
    config, _, output, summary, _ = built
    more_tasks, _ = build(replace(config, tasks=9), tmp_path / "tasks")
    assert more_tasks.fingerprint == summary.fingerprint
    other_seed, _ = build(replace(config, seed=1), tmp_path / "seed")
    assert other_seed.fingerprint != summary.fingerprint
    assert other_seed.documents == summary.documents
    assert set(documents_in(tmp_path / "seed")["validation"]) != set(documents_in(output)["validation"])


def bad_lines(directory: Path) -> Path:
    texts = make_texts(30)
    good = [{"text": text} for text in texts]
    return write_jsonl(
        directory / "a.jsonl",
        [*good[:3], b"not json", good[3], b'{"text": "\xff\xfe"}', {"title": "x"}, {"text": " \n "}, b"", *good[4:]],
    )


def test_bad_records_are_counted_and_reported_with_their_place(tmp_path: Path) -> None:
    path = bad_lines(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/wrong.txt").write_bytes(b"first line\nsecond \xe9\n")
    (tmp_path / "texts/empty.txt").write_bytes(b"")
    (tmp_path / "texts/good.txt").write_text(make_texts(1, seed=9)[0])
    sources = [SourceConfig("lines", "jsonl", str(path)), SourceConfig("t", "text", str(tmp_path / "texts"))]
    config = config_of(*sources, cleaning=CleaningConfig(max_bad_share=0.5))
    summary, _ = build(config, tmp_path / "out")
    assert summary.documents == 31
    assert summary.drops == {"unreadable": 1, "bad_encoding": 2, "missing_text": 1, "empty": 2}
    places = [(problem["place"], problem["reason"]) for problem in summary.problems]
    assert places == [
        (f"{path}:4", "unreadable"),
        (f"{path}:6", "bad_encoding"),
        (f"{path}:7", "missing_text"),
        (f"{path}:8", "empty"),
        (f"{tmp_path}/texts/empty.txt", "empty"),
        (f"{tmp_path}/texts/wrong.txt:2", "bad_encoding"),
    ]
    log = [json.loads(line) for line in (tmp_path / "out/build_log.jsonl").read_text().splitlines()]
    assert [(entry["place"], entry["reason"]) for entry in log] == places
    assert [entry["source"] for entry in log] == ["lines"] * 4 + ["t"] * 2
    manifest = read_manifest(LocalFiles(tmp_path / "out"))
    assert manifest.sources[0]["drops"] == {"unreadable": 1, "bad_encoding": 1, "missing_text": 1, "empty": 1}
    assert f"{path}:4 unreadable (not JSON" in "\n".join(summary.lines())


def test_too_many_bad_records_stop_the_build_and_a_higher_limit_goes_on(tmp_path: Path) -> None:
    path = bad_lines(tmp_path)
    config = config_of(SourceConfig("lines", "jsonl", str(path)))
    message = refused(config, tmp_path / "out")
    assert "4 of 34 records cannot be used (11.8 %); at most 0.1 % may (cleaning.max_bad_share: 0.001)" in message
    assert f"{path}:4 unreadable" in message
    assert f"{path}:6 bad_encoding" in message
    assert len((tmp_path / "out/build_log.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "out/manifest.json").exists()
    summary, _ = build(replace(config, cleaning=CleaningConfig(max_bad_share=0.2)), tmp_path / "out")
    assert summary.documents == 30


def test_a_damaged_file_stops_the_build_with_its_place(tmp_path: Path) -> None:
    content = write_jsonl(tmp_path / "plain", [{"text": text} for text in make_texts(50)]).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content)[:-20])
    message = refused(config_of(SourceConfig("s", "jsonl", str(tmp_path))), tmp_path / "out")
    assert f"{tmp_path}/a.jsonl.gz:" in message
    assert "the compressed file is damaged" in message


def test_duplicates_and_short_documents(tmp_path: Path) -> None:
    texts = make_texts(20)
    records = [{"text": text, "id": f"{number}"} for number, text in enumerate(texts)]
    repeated = {"text": texts[4].replace(" ", "  ") + "\r\n", "id": "again"}  # equal after cleaning
    first = write_jsonl(tmp_path / "a.jsonl", [*records[:10], repeated, {"text": "short", "id": "s"}])
    second = write_jsonl(tmp_path / "b.jsonl", records[5:])
    sources = [
        SourceConfig("a", "jsonl", str(first), id_field="id"),
        SourceConfig("b", "jsonl", str(second), id_field="id"),
    ]
    config = config_of(*sources, cleaning=CleaningConfig(min_characters=10), tasks=4)
    summary, _ = build(config, tmp_path / "out")
    found = documents_in(tmp_path / "out")
    expected = {f"a/{number}" for number in range(10)} | {f"b/{number}" for number in range(10, 20)}
    assert set(found["train"]) | set(found["validation"]) == expected
    assert summary.drops == {"too_short": 1, "duplicate": 6}
    assert [source["drops"] for source in read_manifest(LocalFiles(tmp_path / "out")).sources] == [
        {"too_short": 1, "duplicate": 1},
        {"duplicate": 5},
    ]
    kept_all = replace(config, cleaning=CleaningConfig(deduplicate=False))
    assert build(kept_all, tmp_path / "all")[0].documents == 27


def test_repeated_ids_are_told(tmp_path: Path) -> None:
    records = [{"text": text, "id": "same"} for text in make_texts(5)]
    source = SourceConfig("a", "jsonl", str(write_jsonl(tmp_path / "a.jsonl", records)), id_field="id")
    summary, _ = build(config_of(source), tmp_path / "out")
    assert any("4 documents have the id of another one" in line for line in summary.lines())


def test_two_documents_fill_two_splits_and_one_does_not(tmp_path: Path) -> None:
    for count, splits in ((2, {"train": 1, "validation": 1}), (1, {"train": 1})):
        path = write_jsonl(tmp_path / f"{count}.jsonl", [{"text": text} for text in make_texts(count)])
        summary, _ = build(config_of(SourceConfig("a", "jsonl", str(path))), tmp_path / f"out{count}")
        assert {split: facts["documents"] for split, facts in summary.splits.items()} == splits


def test_options_of_shards(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(40)])
    shards = ShardConfig(tokens=10**6, documents=9, validation_share=0.0, sentences=False)
    config = config_of(SourceConfig("a", "jsonl", str(path)), shards=shards)
    summary, _ = build(config, tmp_path / "out")
    assert summary.splits == {"train": {"documents": 40, "tokens": summary.tokens, "shards": 5}}
    manifest = read_manifest(LocalFiles(tmp_path / "out"))
    assert manifest.splits["train"].documents.tolist() == [8] * 5
    with pytest.raises(UserError, match="has no sentence offsets"):
        Shard.open(LocalFiles(tmp_path / "out"), "train", 0, manifest).sentence_starts(0)


def test_text_that_the_tokenizer_ignores_is_reported(tmp_path: Path) -> None:
    records = [{"text": text, "id": str(number)} for number, text in enumerate(make_texts(30))]
    path = write_jsonl(tmp_path / "a.jsonl", [*records, {"text": "\u200d\u2060", "id": "joiners"}])
    config = config_of(SourceConfig("a", "jsonl", str(path), id_field="id"))
    summary, _ = build(config, tmp_path / "out")
    assert summary.drops == {"no_tokens": 1}
    assert [(problem["place"], problem["reason"]) for problem in summary.problems] == [("a/joiners", "no_tokens")]


def test_a_tokenizer_whose_marks_are_not_special_is_refused(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1, "whale": 2, "eos": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("[UNK]", special=True)])
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "eos", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "the whale eos the"}, {"text": "whale"}])
    config = config_of(SourceConfig("a", "jsonl", str(path)), tokenizer=TokenizerConfig(path=str(folder)))
    assert "gives the special id 3 for plain text of document 'a/a.jsonl:1'" in refused(config, tmp_path / "out")


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    config = config_of(SourceConfig("a", "jsonl", str(path)), cleaning=CleaningConfig(min_characters=10))
    message = refused(config, tmp_path / "out")
    assert "No documents are left after cleaning" in message
    assert "cleaning.min_characters (10)" in message
