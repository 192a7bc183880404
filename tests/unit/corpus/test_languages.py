"""Languages of a corpus: shares of the tokenizer's documents, counts, one corpus a language, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.base.errors import UserError
from pipeline.config.corpus import CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus import build as build_module
from pipeline.corpus.languages import repeated_spread, sample_counts
from pipeline.corpus.stats import corpus_stats, stats_lines
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.writing import build, config_of, files_of, make_texts, refused, write_jsonl


def test_shares_of_bytes_follow_the_power_of_the_size() -> None:
    num_bytes, num_documents = np.array([10**9, 10**7, 3 * 10**5]), np.array([400_000, 20_000, 100])
    for exponent in (0.0, 0.5, 0.7, 1.0):
        counts = sample_counts(num_bytes, num_documents, exponent, 200_000)
        assert counts.sum() == 200_000
        expected = num_bytes**exponent / (num_bytes**exponent).sum()
        sampled = counts * (num_bytes / num_documents)
        np.testing.assert_allclose(sampled / sampled.sum(), expected, rtol=0.01)


def test_with_exponent_one_everything_is_taken_once() -> None:
    counts = sample_counts(np.array([700, 90, 5]), np.array([70, 9, 1]), 1.0, 1000)
    assert counts.tolist() == [70, 9, 1]


def test_every_language_that_has_documents_is_there() -> None:
    counts = sample_counts(np.array([10**12, 10, 0]), np.array([10**6, 1, 0]), 1.0, 100)
    assert counts.tolist() == [99, 1, 0]


def test_documents_are_repeated_evenly() -> None:
    numbers = np.array([3, 5, 8, 13], np.int64)
    assert repeated_spread(numbers, 2).tolist() == [3, 8]
    assert repeated_spread(numbers, 4).tolist() == [3, 5, 8, 13]
    assert repeated_spread(numbers, 10).tolist() == [3, 3, 3, 5, 5, 8, 8, 8, 13, 13]
    assert repeated_spread(numbers[:0], 0).tolist() == []


SIZES = {"en": 80, "de": 40, "sw": 10}


def three_languages(directory: Path, by_language: bool) -> CorpusConfig:
    """English from two sources, German and Swahili; 80, 40 and 10 documents."""
    sources = []
    for seed, (language, size) in enumerate(SIZES.items()):
        texts = [f"{language}{number} {text}" for number, text in enumerate(make_texts(size, seed))]
        half = size // 2 if language == "en" else size
        for part, own in enumerate((texts[:half], texts[half:])):
            if own:
                path = write_jsonl(directory / f"in/{language}{part}.jsonl", [{"text": text} for text in own])
                sources.append(SourceConfig(f"{language}{part}", "jsonl", str(path), language=language))
    shards = ShardConfig(tokens=2000, block_tokens=500, validation_share=0.2, by_language=by_language)
    return config_of(*sources, shards=shards, tasks=3)


def manifest_of(directory: Path) -> Manifest:
    return read_manifest(LocalFiles(directory))


def test_one_corpus_of_three_languages_counts_them(tmp_path: Path) -> None:
    config = three_languages(tmp_path, by_language=False)
    summary, _ = build(config, tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    languages = manifest.extra["languages"]
    assert summary.languages == languages
    assert {name: facts["documents"] for name, facts in languages.items()} == SIZES
    for language, facts in languages.items():
        own = [source for source in manifest.sources if source["language"] == language]
        assert facts["tokens"] == sum(source["tokens"] for source in own)
    for split, table in manifest.splits.items():
        for column, name in ((table.documents, "documents"), (table.tokens, "tokens")):
            assert sum(facts["splits"].get(split, {name: 0})[name] for facts in languages.values()) == column.sum()
    lines = stats_lines(corpus_stats(tmp_path / "out"))
    assert any(line.startswith("  language de: 40 documents, ") for line in lines)


def test_each_language_is_a_corpus_of_its_own_with_the_shared_tokenizer(tmp_path: Path) -> None:
    joint, _ = build(three_languages(tmp_path, by_language=False), tmp_path / "joint")
    config = three_languages(tmp_path, by_language=True)
    output = tmp_path / "out"
    summary, _ = build(config, output, processes=2)
    assert sorted(path.name for path in output.iterdir()) == ["build_log.jsonl", "de", "en", "mixture.yaml", "sw"]
    assert summary.languages == joint.languages
    assert (summary.documents, summary.tokens) == (joint.documents, joint.tokens)
    shared = files_of(tmp_path / "joint/tokenizer")
    for language, size in SIZES.items():
        verify_corpus(output / language)
        manifest = manifest_of(output / language)
        assert files_of(output / language / "tokenizer") == shared
        assert sum(int(table.documents.sum()) for table in manifest.splits.values()) == size
        assert list(manifest.extra["languages"]) == [language]
        assert {source["language"] for source in manifest.sources} == {language}
    mixture = yaml.safe_load((output / "mixture.yaml").read_text())
    sources = [{"corpus": str(output / language)} for language in SIZES]
    assert mixture == {"data": {"mixture_exponent": 0.7, "mixture": sources}}
    assert "mixture_exponent: 0.7" in "\n".join(summary.lines())
    before = files_of(output)
    again, _ = build(config, output)
    assert again.was_complete
    assert replace(again, was_complete=False, seconds=summary.seconds) == summary
    assert files_of(output) == before


def test_a_build_by_language_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = three_languages(tmp_path, by_language=True)
    build(config, tmp_path / "reference")
    reference = files_of(tmp_path / "reference")
    write = build_module.write_manifest

    def stop(directory: Path, manifest: Manifest) -> None:
        if directory.name == "de":
            raise KeyboardInterrupt
        write(directory, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path / "out")
    assert (tmp_path / "out/en/manifest.json").exists()
    (tmp_path / "out/de/.manifest.json.123.tmp").write_text("half")
    build(config, tmp_path / "out")
    found = files_of(tmp_path / "out")
    assert found.pop("mixture.yaml").decode() == reference.pop("mixture.yaml").decode().replace("reference", "out")
    assert found == reference


def test_input_that_changed_before_the_end_leaves_nothing_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = three_languages(tmp_path, by_language=True)

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "mixture_yaml", stop)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path / "out")
    write_jsonl(tmp_path / "in/sw0.jsonl", [{"text": text} for text in make_texts(5, 77)])
    _, printed = build(config, tmp_path / "out")
    assert "starting over" in printed
    build(config, tmp_path / "fresh")
    for language in SIZES:
        assert files_of(tmp_path / "out" / language) == files_of(tmp_path / "fresh" / language)


def test_corpora_of_another_config_are_refused(tmp_path: Path) -> None:
    by_language = three_languages(tmp_path, by_language=True)
    joint = three_languages(tmp_path, by_language=False)
    build(by_language, tmp_path / "languages")
    build(joint, tmp_path / "joint")
    assert "holds a corpus built with another config" in refused(by_language, tmp_path / "joint")
    assert "is not empty and holds no corpus (found de, en, mixture.yaml, sw)" in refused(joint, tmp_path / "languages")
    assert "holds a corpus built with another config" in refused(replace(by_language, seed=1), tmp_path / "languages")
    french = [replace(source, language="fr") for source in by_language.sources[:2]]
    message = refused(replace(by_language, sources=french), tmp_path / "languages")
    assert f"holds corpora by language, but none in {tmp_path / 'languages/fr'}" in message
    with pytest.raises(UserError, match="of corpora by language, one of its folders"):
        corpus_stats(tmp_path / "languages")


def test_a_language_without_documents_is_named(tmp_path: Path) -> None:
    texts = make_texts(20)
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts]) for name in ("a", "b")]
    sources = [SourceConfig(path.stem, "jsonl", str(path), language=f"l{path.stem}") for path in paths]
    config = config_of(*sources, shards=ShardConfig(by_language=True))
    assert "No documents are left of language 'lb'" in refused(config, tmp_path / "out")


def test_languages_that_stay_at_their_defaults_change_no_corpus(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(30)])
    config = config_of(SourceConfig("a", "jsonl", str(path)), tokenizer=TokenizerConfig(vocab_size=150))
    build(config, tmp_path / "out")
    facts = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "languages" not in facts["extra"]
    changed = replace(config, tokenizer=replace(config.tokenizer, language_exponent=0.5))
    assert "another config" in refused(changed, tmp_path / "out")
