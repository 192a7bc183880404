"""What `pretrain batch` shows of every kind of objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pipeline.config.run import RunConfig
from pipeline.objectives.predictions import KEPT
from pipeline.train.replay import Replayed, print_batch, replay_batch
from tests.corpora import SPECIAL_IDS, random_lengths, write_corpus
from tests.runs import load, write_config

VOCABULARY = 200
BART = ("--model.family=bart", "--objective.name=denoise", "--objective.permute_sentences=0")
MASS = (*BART, "--objective.infilling_rate=0", "--objective.span_mask_rate=0.5", "--objective.predict=masked")


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("replay")
    corpus = write_corpus(directory / "corpus", random_lengths(0, 2, 60), vocab_size=VOCABULARY)
    return write_config(directory, corpus.directory)


def shown(
    config: RunConfig, directory: Path, capsys: pytest.CaptureFixture[str], step: int = 1
) -> tuple[Replayed, str]:
    """A step and how it is printed, with token 7 as `t7`."""
    tokenizer = Tokenizer(WordLevel({f"t{number}": number for number in range(VOCABULARY)}, unk_token="t1"))
    tokenizer.save(str(directory / "tokenizer.json"))
    replayed = replace(replay_batch(config, step), tokenizer_file=directory / "tokenizer.json")
    print_batch(replayed, num_rows=100)
    return replayed, capsys.readouterr().out


def words_of(ids: np.ndarray) -> str:
    return " ".join(f"t{number}" for number in ids.tolist())


def lines_of(printed: str, name: str) -> list[str]:
    marked = f"    {name}: "
    return [line.removeprefix(marked) for line in printed.splitlines() if line.startswith(marked)]


def test_denoising_shows_the_noisy_text_and_the_clean_one(
    config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed, printed = shown(load(config_path, *BART), tmp_path, capsys)
    rows = replayed.rows
    noisy, clean = lines_of(printed, "noisy"), lines_of(printed, "target")
    texts = [
        words_of(rows.tokens[row, start : start + length])
        for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True)
    ]
    assert clean == texts
    assert len(noisy) == len(clean)
    mask, pad = (f"t{SPECIAL_IDS[name]}" for name in ("mask", "pad"))
    assert sum(text.split().count(mask) for text in noisy) > 5
    assert not any(pad in text.split() for text in noisy)
    assert all(len(one.split()) <= len(other.split()) for one, other in zip(noisy, clean, strict=True))
    assert "=" not in printed
    assert replayed.facts()["objective"] == "denoise"


def test_a_masked_span_is_the_target_and_its_text_is_noisy(
    config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed, printed = shown(load(config_path, *MASS), tmp_path, capsys)
    rows = replayed.rows
    targets = []
    for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
        labels = replayed.labels[row, start : start + length]
        targets.append(words_of(labels[labels != KEPT]))
        assert (labels != KEPT).sum() < length
    assert lines_of(printed, "target") == targets
    assert len(lines_of(printed, "noisy")) == len(targets)


def test_only_next_tokens_go_unmarked(config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = shown(load(config_path, "--model.family=gpt2", "--objective.name=clm"), tmp_path, capsys)
    assert "=" not in printed
    replayed, printed = shown(load(config_path), tmp_path, capsys)
    assert printed.count("=") == (replayed.labels != KEPT).sum() > 0
    assert "(mlm)" not in printed  # a lone objective stands in the config


def test_a_step_of_a_mixture_names_its_objective(
    config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(config_path, "--objective.mixture", "[{name: mlm}, {label: dense, mask_rate: 0.4}]")
    found = set()
    for step in range(1, 9):
        replayed, printed = shown(config, tmp_path, capsys, step)
        facts = replayed.facts()
        share = facts["predictions"] / facts["real_tokens"]
        assert facts["objective"] == ("dense" if share > 0.25 else "mlm")
        assert printed.startswith(f"step {step} ({facts['objective']}): ")
        found.add(facts["objective"])
    assert found == {"dense", "mlm"}
