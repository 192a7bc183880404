"""Rows of the other strand in a run: the same whoever computes them, replayed, and never in validation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts
from pipeline.config.derived import batch_plan
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.data.digest import combine_row_digests
from pipeline.data.stream import RowStream
from pipeline.shards.manifest import write_manifest
from pipeline.train.identity import check_identity
from pipeline.train.replay import print_batch, replay_batch
from pipeline.train.streams import open_streams
from tests.corpora import NUM_SPECIAL, random_lengths, write_corpus

STEPS = 12
CONFIG = """
run_directory: DIR/run
data: {corpus: DIR/LETTERS, sequence_length: 32, reverse_complement: 0.5}
model: {hidden_size: 32, num_layers: 1, num_heads: 2, intermediate_size: 64, max_positions: 32}
train: {steps: 12, global_batch_size: 9, micro_batch_size: 2, device: cpu, precision: fp32}
evaluation: {rows: 6}
monitor: {log_every_steps: 1, wandb: "off"}
"""


def config_over(letters: str, directory: Path) -> Path:
    """A corpus of random letters, whose tokenizer has one id for each."""
    corpus = write_corpus(directory / letters, random_lengths(0, 2, 12), vocab_size=NUM_SPECIAL + len(letters))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>"]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    content = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    (corpus.directory / "tokenizer/tokenizer.json").write_bytes(content)
    fingerprint = hashlib.sha256(content).hexdigest()
    write_manifest(corpus.directory, replace(corpus.manifest, tokenizer_fingerprint=fingerprint))
    path = directory / f"{letters}.yaml"
    path.write_text(CONFIG.replace("DIR", str(directory)).replace("LETTERS", letters))
    return path


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_over("ACGTN", tmp_path_factory.mktemp("strands"))


def load(path: Path, *overrides: str) -> RunConfig:
    return load_run_config(path, overrides)


def trained_digests(config: RunConfig, world_size: int) -> list[str]:
    """Of the global batches, put together from what the ranks train on, filler rows and all."""
    plan, streams = batch_plan(config, world_size), open_streams(config)
    numbers: list[list[torch.Tensor]] = [[] for _ in range(STEPS)]
    rows: list[list[torch.Tensor]] = [[] for _ in range(STEPS)]
    for rank in range(world_size):
        facts = RankFacts(rank, world_size, rank, world_size)
        for batch in streams.train_loader(0, plan, facts, torch.device("cpu")):
            assert batch.row_digests is not None
            numbers[batch.step - 1].append(batch.row_numbers)
            rows[batch.step - 1].append(batch.row_digests)
    return [
        combine_row_digests(torch.cat(own).numpy(), torch.cat(parts).numpy())
        for own, parts in zip(numbers, rows, strict=True)
    ]


def test_ranks_micro_batches_and_the_replay_agree(config_path: Path) -> None:
    config = load(config_path)
    expected = [replay_batch(config, step).digest for step in range(1, STEPS + 1)]
    assert trained_digests(config, 1) == trained_digests(config, 4) == expected
    assert trained_digests(load(config_path, "--train.micro_batch_size=5", "--data.prefetch_steps=9"), 2) == expected
    without = [replay_batch(load(config_path, "--data.reverse_complement=0"), step).digest for step in (1, 2)]
    assert without[0] != expected[0]
    assert without[1] != expected[1]


def test_the_replay_says_which_rows_are_of_the_other_strand(
    config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, plain = load(config_path), load(config_path, "--data.reverse_complement=0")
    found: set[bool] = set()
    for step in range(1, 5):
        replayed, forward = replay_batch(config, step), replay_batch(plain, step)
        changed = (replayed.rows.tokens != forward.rows.tokens).any(1)
        for segment in replayed.facts()["segments"]:
            row = segment["row"] - replayed.facts()["first_row"]
            is_reverse = segment.get("reverse_complement", False)
            assert is_reverse == replayed.is_reverse[row]
            assert is_reverse or not changed[row]
            found.add(is_reverse)
        assert not any("reverse_complement" in segment for segment in forward.facts()["segments"])
    assert found == {True, False}
    print_batch(replayed, num_rows=9)
    assert capsys.readouterr().out.count(", reverse complement\n") == int(replayed.is_reverse.sum())


def test_every_epoch_draws_anew(config_path: Path) -> None:
    streams = open_streams(load(config_path))
    reverse = streams.reverse_complement
    assert reverse is not None
    size = streams.train.num_rows
    first, second = (reverse.chosen(np.arange(size) + epoch * size) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert 0 < first.sum() < size


def test_validation_is_read_forwards(config_path: Path) -> None:
    facts = RankFacts(0, 1, 0, 1)
    found = []
    for probability in ("0", "1"):
        config = load(config_path, f"--data.reverse_complement={probability}")
        found.append(open_streams(config).validation_batches(0, batch_plan(config, 1), facts))
    assert len(found[0]) > 1
    for ours, other in zip(*found, strict=True):
        assert torch.equal(ours.input_ids, other.input_ids)
        assert torch.equal(ours.labels, other.labels)


def test_another_probability_is_another_run(config_path: Path) -> None:
    saved, present = (
        open_streams(load(config_path, f"--data.reverse_complement={share}")).identity(3) for share in ("0.5", "0.4")
    )
    with pytest.raises(UserError, match=r"data\.reverse_complement: checkpoint 0\.5, now 0\.4"):
        check_identity(saved, present, "step-3")


def test_a_corpus_of_proteins_is_refused_when_the_streams_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(config_over("ACDEFGHIKLMNPQRSTVWY", tmp_path))

    def read(*_: object) -> None:
        raise AssertionError("rows are read before the vocabulary is looked at")

    monkeypatch.setattr(RowStream, "rows", read)
    with pytest.raises(UserError, match=r"the token 'E' .* has no complement: 'E' is no letter of DNA or RNA"):
        open_streams(config)
    assert open_streams(replace(config, data=replace(config.data, reverse_complement=0.0))).reverse_complement is None
