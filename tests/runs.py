"""Tiny runs for tests: a config on a corpus of random tokens, and what a run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoints.meta import checkpoint_directory
from pipeline.checkpoints.reading import read_weights
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.train.run import RunOutcome, train
from tests.corpora import Corpus, random_lengths, write_corpus

TINY_RUN = """
data: {sequence_length: 64}
model: {hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 64, max_positions: 64, hidden_dropout: 0.1}
optimizer: {learning_rate: 1e-2}
schedule: {warmup_steps: 3}
train: {steps: 20, global_batch_size: 8, micro_batch_size: 2, strategy: single, device: cpu, precision: fp32,
        threads_per_rank: 1, zero3_persistence_threshold: 0}
checkpoint: {every_steps: 5, keep_last: 10}
evaluation: {every_steps: 10, rows: 5}
monitor: {log_every_steps: 1, wandb: "off"}
"""


def tiny_corpus(directory: Path, vocab_size: int = 200) -> Corpus:
    """Three shards of random tokens, 15 to 40 documents each."""
    return write_corpus(directory, random_lengths(0, 3, 30), vocab_size=vocab_size)


def write_config(directory: Path, corpus: Path, name: str = "run") -> Path:
    """A config file for a run in ``directory/name``."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(f"run_directory: {directory / name}\n" + TINY_RUN.replace("data: {", f"data: {{corpus: {corpus}, "))
    return path


def run_rank(config_path: str, overrides: list[str]) -> RunOutcome:
    """Train as the rank that the environment names; for :meth:`tests.rankpool.RankPool.run`."""
    return train(load_run_config(config_path, overrides))


def load(config_path: Path, *overrides: str) -> RunConfig:
    return load_run_config(config_path, overrides)


def metrics_of(run_directory: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


def weights_of(run_directory: Path, step: int) -> dict[str, Tensor]:
    """The weights of a checkpoint, whole, by the stock parameters' names."""
    return read_weights(checkpoint_directory(run_directory, step))


def column(run_directory: Path, name: str) -> list[Any]:
    """One metric over the logged steps."""
    return [line[name] for line in metrics_of(run_directory)]
