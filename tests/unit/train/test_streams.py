"""The global batches of a run, with mixture, stages, packing, masks and exclusions: one list, whoever computes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts
from pipeline.cli import main
from pipeline.config.derived import batch_plan
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.data.digest import combine_row_digests
from pipeline.train.identity import check_identity
from pipeline.train.provenance import document_steps
from pipeline.train.replay import print_batch, replay_batch
from pipeline.train.streams import open_streams
from tests.corpora import random_lengths, write_corpus

STEPS = 24
CONFIG = """
run_directory: RUN
data:
  mixture: [{corpus: DIR/0, weight: 3}, {corpus: DIR/1, epochs: 1}, {corpus: DIR/2, weight: 200}]
  mixture_exponent: 0.7
  exclude: [{documents: ["train-0/3 é"], from_step: 9}]
  sequence_length: 64
  open_shards: 6
model: {hidden_size: 32, num_layers: 1, num_heads: 2, intermediate_size: 64, max_positions: 64}
train:
  steps: 24
  global_batch_size: 9
  micro_batch_size: 2
  stages: [{steps: 14, sequence_length: 32, global_batch_size: 16}, {}]
  batch_warmup: {tokens: 1500, start: 8, increment: 4}
  device: cpu
  precision: fp32
monitor: {log_every_steps: 1, wandb: "off"}
"""


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("streams")
    for number, shape in enumerate(((3, 14), (2, 9), (4, 20))):
        write_corpus(directory / str(number), random_lengths(number, *shape), seed=number)
    path = directory / "run.yaml"
    path.write_text(CONFIG.replace("DIR", str(directory)).replace("RUN", str(directory / "run")))
    return path


def load(path: Path, *overrides: str) -> RunConfig:
    return load_run_config(path, overrides)


def digests(config: RunConfig, world_size: int, first_step: int = 0) -> list[str]:
    """Digests of the global batches, put together from the micro-batches that the ranks train on."""
    plan = batch_plan(config, world_size)
    streams = open_streams(config)
    numbers: dict[int, list[torch.Tensor]] = {}
    rows: dict[int, list[torch.Tensor]] = {}
    for rank in range(world_size):
        facts = RankFacts(rank, world_size, rank, world_size)
        for batch in streams.train_loader(first_step, plan, facts, torch.device("cpu")):
            assert batch.row_digests is not None
            assert len(batch.input_ids) == plan.micro_rows[streams.stages.of_step(batch.step - 1)]
            numbers.setdefault(batch.step, []).append(batch.row_numbers)
            rows.setdefault(batch.step, []).append(batch.row_digests)
    steps = sorted(numbers)
    assert steps == list(range(first_step + 1, config.train.steps + 1))
    assert {len(parts) for parts in numbers.values()} == {world_size * plan.accumulation}
    return [combine_row_digests(torch.cat(numbers[step]).numpy(), torch.cat(rows[step]).numpy()) for step in steps]


@pytest.fixture(scope="module")
def expected(config_path: Path) -> list[str]:
    return [replay_batch(load(config_path), step).digest for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("micro_batch_size", "prefetch_steps"), [(1, 1), (2, 4), (5, 20)])
def test_every_world_size_and_micro_batch_trains_on_the_same_batches(
    config_path: Path, expected: list[str], world_size: int, micro_batch_size: int, prefetch_steps: int
) -> None:
    settings = {"train.micro_batch_size": micro_batch_size, "data.prefetch_steps": prefetch_steps}
    overrides = [f"--{name}={value}" for name, value in settings.items()]
    assert digests(load(config_path, *overrides), world_size) == expected


@pytest.mark.parametrize(("workers", "world_size"), [(1, 3), (2, 1), (2, 4)])
def test_loader_processes_give_the_same_batches(
    config_path: Path, expected: list[str], workers: int, world_size: int
) -> None:
    assert digests(load(config_path, f"--data.workers={workers}"), world_size) == expected


def test_a_start_at_any_step_on_any_world_size_goes_on_with_the_same_batches(
    config_path: Path, expected: list[str]
) -> None:
    generator = np.random.default_rng(0)
    for first_step in (1, 2, 7, 13, 14, 15, 23):
        world_size = int(generator.choice([1, 2, 3, 4, 5, 8]))
        assert digests(load(config_path), world_size, first_step) == expected[first_step:]


def test_stages_ahead_may_be_changed_and_those_behind_not(config_path: Path) -> None:
    plain = open_streams(load(config_path))
    later = open_streams(
        load(config_path, "--train.stages", '[{"steps": 14, "sequence_length": 32, "global_batch_size": 16}, '
             '{"steps": 4}, {"sequence_length": 16}]')
    )  # fmt: skip
    check_identity(plain.identity(18), later.identity(18), "checkpoint")
    with pytest.raises(UserError, match=r"belongs to another run:\n  - stream\.stages: checkpoint \[\[0, 8, 32"):
        check_identity(plain.identity(20), later.identity(20), "checkpoint")
    excluding = open_streams(load(config_path, "--data.exclude", '[{"documents": ["train-0/3 é"], "from_step": 20}]'))
    check_identity(plain.identity(8), excluding.identity(8), "checkpoint")
    with pytest.raises(UserError, match=r"stream\.exclusions: checkpoint '[0-9a-f]{64}', now '' .*a later from_step"):
        check_identity(plain.identity(9), excluding.identity(9), "checkpoint")
    skipping = open_streams(load(config_path, "--train.skip_steps", "[20, 22, 20]"))
    check_identity(plain.identity(19), skipping.identity(19), "checkpoint")
    with pytest.raises(UserError, match=r"train\.skip_steps: checkpoint \[\], now \[20\] \(up to then\)"):
        check_identity(plain.identity(21), skipping.identity(21), "checkpoint")


@pytest.mark.parametrize("packing", ["best_fit", "pairs_nsp"])
def test_where_agrees_with_the_replay_of_every_step(
    config_path: Path, packing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config_path), "--data.packing", packing]
    config = load(config_path, *arguments[2:])
    seen: dict[str, set[tuple[int, int]]] = {}
    for step in range(1, STEPS + 1):
        for segment in replay_batch(config, step).facts()["segments"]:
            for part in (segment, segment.get("second_part", segment)):
                seen.setdefault(part["document"], set()).add((step, segment["row"]))
    for document in ("train-0/3 é", "train-1/2 é", "train-3/15 é"):
        facts = document_steps(config, document)
        found = {(one["step"], one["row"]) for place in facts["places"] for one in place["readings"]}
        assert found == seen.get(document, set())
    assert main(["corpus", "where", "--document", "train-0/3 é", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document_steps(config, "train-0/3 é")
    assert main(["corpus", "where", "--document", "train-0/3 é", *arguments]) == 0
    assert "  step 1: tokens " in capsys.readouterr().out or seen["train-0/3 é"]


def test_a_printed_pair_names_its_corpus_and_both_documents(
    config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer(WordLevel({f"t{number}": number for number in range(1000)}, unk_token="t1"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    replayed = replay_batch(load(config_path, "--data.packing=pairs_nsp"), 3)
    print_batch(replace(replayed, tokenizer_file=tmp_path / "tokenizer.json"), num_rows=100)
    printed = capsys.readouterr().out
    segments = replayed.facts()["segments"]
    pairs = [segment for segment in segments if "second_part" in segment]
    assert len(pairs) > 5
    for segment in pairs:
        second = segment["second_part"]
        assert second["document"] in replayed.facts()["documents"]
        assert f"(epoch {segment['epoch']}, shard {segment['shard']} of {segment['corpus']})" in printed
        expected = f"{segment['document']} from token {segment['offset']}, then {second['document']} from token"
        assert f"  {expected} {second['offset']}:\n" in printed


def test_a_corpus_named_twice_is_refused(config_path: Path) -> None:
    corpus = f"{config_path.parent}/0"
    named = ["--data.mixture", json.dumps([{"corpus": corpus}, {"corpus": f"{corpus}/../0"}])]
    with pytest.raises(UserError, match=r"data\.mixture: .*/\.\./0 and .*/0 are the same corpus: .* Name it once"):
        open_streams(load(config_path, *named))


def test_stages_after_the_last_step_are_named_and_not_opened(
    config_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(config_path, "--train.steps=10")
    streams = open_streams(config)
    assert [stage.sequence_length for stage in streams.stages.all] == [32, 32, 32]
    assert len(batch_plan(config, 3).micro_rows) == 3
    assert "the stage from step 15: 9 rows of 64 tokens begins after the run's last step (train.steps)" in caplog.text


def test_more_steps_than_a_mixture_has_rows_are_refused(config_path: Path) -> None:
    sources = [{"corpus": str(config_path.parent / name), "epochs": 1} for name in ("0", "1")]
    mixture = ["--data.mixture", json.dumps(sources)]
    with pytest.raises(UserError, match=r"train\.steps is 5000, but every source of data\.mixture has dropped out"):
        open_streams(load(config_path, *mixture, "--train.stages=[]", "--train.steps=5000"))
    with pytest.raises(UserError, match=r"The data end at row \d+, before row \d+: every source of data\.mixture"):
        open_streams(load(config_path, *mixture, "--train.steps=5000"))
