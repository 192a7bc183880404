"""A run goes on under another strategy and another number of ranks as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.meta import CheckpointMeta, checkpoint_directory, describe
from pipeline.checkpoints.pieces import rank_file_name
from pipeline.checkpoints.reading import CheckpointReader
from pipeline.checkpoints.retention import Retention
from pipeline.train import saving
from pipeline.train.background_saves import BackgroundSaves
from pipeline.train.checkpoint import load_checkpoint
from pipeline.train.rank_state import rank_pieces
from pipeline.train.run import RunOutcome
from tests.rankpool import RankPool
from tests.runs import column, run_rank, tiny_corpus, write_config

SETTINGS = ["--schedule.name", "constant", "--optimizer.learning_rate", "1e-3", "--model.hidden_dropout", "0"]
SETTINGS += ["--evaluation.every_steps", "0", "--schedule.warmup_steps", "1"]
EMBEDDING = "weight/bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


def save_at_once(trainer: Any, module: Any, run_directory: Path, meta: CheckpointMeta) -> None:
    """Write a checkpoint of the present state and wait for it."""
    retention = Retention(keep_last=1, every_steps=1)
    saves = BackgroundSaves(run_directory, module.control, trainer.global_rank, retention, "again", lambda _: None)
    saves.begin(meta.step, lambda: rank_pieces(trainer, module), describe(meta))
    assert saves.settle() is None
    saves.close()


def run_and_save_again(config_path: str, overrides: list[str]) -> RunOutcome:
    """Run; what a checkpoint has restored is saved at once, in ``again/`` of the run directory."""

    def load_and_save(trainer: Any, module: Any, directory: Path) -> Any:
        meta = load_checkpoint(trainer, module, directory)
        if module.config.train.strategy in ("single", "ddp"):
            model = module.model
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        again = replace(meta, world_size=trainer.world_size)
        save_at_once(trainer, module, Path(config_path).with_suffix("") / "again", again)
        return meta

    saving.load_checkpoint = load_and_save
    try:
        return run_rank(config_path, overrides)
    finally:
        saving.load_checkpoint = load_checkpoint


def state_of(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    reader = CheckpointReader(checkpoint)
    yield from ((key, reader.read(key)) for key in reader.shapes)


def check_same_state(run: Path, step: int) -> None:
    """Weights, moments and steps are to the bit those of the checkpoint that was restored, each there once."""
    saved, again = (dict(state_of(checkpoint_directory(path, step))) for path in (run, run / "again"))
    assert saved.keys() == again.keys()
    for key, value in saved.items():
        assert (again[key].dtype, again[key].shape) == (value.dtype, value.shape), key
        assert again[key].numpy().tobytes() == value.numpy().tobytes(), key
    assert {key.split("/")[0] for key in saved} == {"weight", "exp_avg", "exp_avg_sq", "step"}
    assert EMBEDDING in saved
    assert not any("decoder" in key for key in saved)  # tied to the embedding
    assert float(saved["exp_avg_sq" + EMBEDDING.removeprefix("weight")].abs().max()) > 0


def train_in_turn(
    rank_pool: RankPool, config: Path, hops: list[tuple[str, int]], overrides: list[str], steps_each: int = 2
) -> Path:
    """Train some steps in each of the layouts (strategy, ranks); what each restores is what the one before saved."""
    run = config.with_suffix("")
    for number, (strategy, world_size) in enumerate(hops):
        before, after = number * steps_each, (number + 1) * steps_each
        arguments = [*SETTINGS, *overrides, "--train.strategy", strategy, "--train.steps", str(after)]
        rank_pool.run(run_and_save_again, str(config), arguments, world_size=world_size)
        meta = json.loads((checkpoint_directory(run, after) / "meta.json").read_text())
        assert (meta["strategy"], meta["world_size"]) == (strategy, world_size)
        assert sorted(meta["files"]) == [rank_file_name(rank) for rank in range(world_size)]
        if number:
            check_same_state(run, before)
    return run


def test_ranks_and_stages_change_at_every_restart(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    alone = write_config(tmp_path, corpus, "alone")
    rank_pool.run(run_rank, str(alone), [*SETTINGS, "--train.steps", "12"], world_size=1)
    hops = [("single", 1), ("zero1", 2), ("zero2", 4), ("zero3", 3), ("zero1", 1), ("ddp", 2)]
    run = train_in_turn(rank_pool, write_config(tmp_path, corpus), hops, [])
    expected = alone.with_suffix("")
    assert column(run, "step") == list(range(1, 13))
    for name in ("batch_digest", "tokens", "lr"):
        assert column(run, name) == column(expected, name)
    assert column(run, "loss") == pytest.approx(column(expected, "loss"), abs=1e-6)


def test_master_weights_of_bf16_are_kept_exactly(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    """Under ZeRO the model has their bf16 roundings; small parameters stay gathered on all ranks of `zero3`."""
    hops = [("ddp", 2), ("zero1", 2), ("zero3", 2), ("zero2", 1), ("ddp", 1)]
    bf16 = ["--train.precision", "bf16", "--train.zero3_persistence_threshold", "1000"]
    run = train_in_turn(rank_pool, write_config(tmp_path, corpus), hops, bf16)
    alone = write_config(tmp_path, corpus, "alone")
    rank_pool.run(run_rank, str(alone), [*SETTINGS, *bf16, "--train.steps", "10"], world_size=1)
    assert column(run, "loss") == pytest.approx(column(alone.with_suffix(""), "loss"), abs=1e-2)
    weights = CheckpointReader(checkpoint_directory(run, 4)).weights()
    assert not all(torch.equal(value, value.bfloat16().float()) for value in weights.values())
