"""Three tiny languages of very different sizes through the commands: built, described, mixed, trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.corpus import tokenizer as tokenizer_module
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from tests.runs import TINY_RUN, column
from tests.unit.corpus.writing import make_texts, write_jsonl

DOCUMENTS = {"en": 400, "de": 60, "sw": 8}
EXPONENT = 0.7


def corpus_config(directory: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    """The config, and the texts by their ids of every language; every word of a text tells its language."""
    texts: dict[str, dict[str, str]] = {}
    sources = []
    for seed, (language, count) in enumerate(DOCUMENTS.items()):
        own = [" ".join(language + word for word in text.split()) for text in make_texts(count, seed)]
        path = write_jsonl(directory / f"{language}.jsonl", [{"text": text} for text in own])
        sources.append(f"  - {{name: {language}, kind: jsonl, path: {path}, language: {language}}}\n")
        texts[language] = {f"{language}/{path.name}:{line}": text for line, text in enumerate(own, 1)}
    path = directory / "corpus.yaml"
    path.write_text(
        "sources:\n" + "".join(sources) + "tokenizer: {vocab_size: 200}\n"
        "shards: {tokens: 4000, block_tokens: 500, validation_share: 0.2, by_language: true}\n"
    )
    return path, texts


def test_three_languages_from_text_to_training(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, texts = corpus_config(tmp_path)
    trained_on: list[str] = []
    train_tokenizer = tokenizer_module.train_tokenizer

    def recorded(settings: Any, of_training: Any) -> Any:
        trained_on.extend(of_training())
        return train_tokenizer(settings, of_training)

    monkeypatch.setattr(tokenizer_module, "train_tokenizer", recorded)
    output = tmp_path / "corpora"
    command = ["corpus", "build", str(config), "--output", str(output), "--processes", "1", "--json"]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    stats = stats_of(output, capsys)
    assert summary["languages"] == {language: facts["languages"][language] for language, facts in stats.items()}
    for language, facts in stats.items():
        assert sum(split["documents"] for split in facts["splits"].values()) == DOCUMENTS[language]
        assert facts["languages"][language]["tokens"] == sum(split["tokens"] for split in facts["splits"].values())
    check_shares(trained_on, texts, stats)
    train_on_the_mixture(tmp_path, output, capsys)


def stats_of(output: Path, capsys: Any) -> dict[str, dict[str, Any]]:
    stats = {}
    for language in DOCUMENTS:
        assert main(["corpus", "stats", str(output / language), "--json"]) == 0
        stats[language] = json.loads(capsys.readouterr().out)
    return stats


def check_shares(trained_on: list[str], texts: dict[str, dict[str, str]], stats: dict[str, dict[str, Any]]) -> None:
    """The bytes of every language in the tokenizer's sample are its training bytes to the power, normalised."""
    sampled: Counter[str] = Counter()
    for text in trained_on:
        sampled[text[:2]] += len(text.encode())
    num_training = sum(facts["splits"]["train"]["documents"] for facts in stats.values())
    assert len(trained_on) == num_training
    size = {language: sum(len(text.encode()) for text in own.values()) for language, own in texts.items()}
    shares = {
        language: facts["splits"]["train"]["documents"] / DOCUMENTS[language] for language, facts in stats.items()
    }
    powers = {language: (size[language] * shares[language]) ** EXPONENT for language in DOCUMENTS}
    for language, power in powers.items():
        expected = power / sum(powers.values())
        assert sampled[language] / sampled.total() == pytest.approx(expected, rel=0.15)
    assert sampled["sw"] / sampled.total() > 2 * size["sw"] / sum(size.values())
    for language, own in texts.items():
        held_out = {own[name] for name in ids_of(Path(stats[language]["directory"]), "validation")}
        assert held_out
        assert not held_out & set(trained_on)


def ids_of(corpus: Path, split: str) -> list[str]:
    files = LocalFiles(corpus)
    manifest = read_manifest(files)
    shards = [Shard.open(files, split, number, manifest) for number in range(len(manifest.splits[split]))]
    return [name for shard in shards for name in shard.document_ids(range(shard.documents))]


def train_on_the_mixture(directory: Path, output: Path, capsys: Any) -> None:
    text = f"base: {output / 'mixture.yaml'}\nrun_directory: {directory / 'run'}\n" + TINY_RUN
    (directory / "run.yaml").write_text(text.replace("steps: 20", "steps: 5"))
    assert main(["config", "check", str(directory / "run.yaml")]) == 0
    assert main(["train", str(directory / "run.yaml")]) == 0
    assert len(column(directory / "run", "loss")) == 5
    resolved = (directory / "run/config.yaml").read_text()
    assert f"mixture_exponent: {EXPONENT}" in resolved
    for language in DOCUMENTS:
        assert f"corpus: {output / language}" in resolved
