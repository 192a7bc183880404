"""A defect of others that is worked around here: the test fails when it is mended, and the way around can go."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from lightning.pytorch.plugins.precision import DeepSpeedPrecision

from pipeline.train.precision import OnceScaledPrecision
from tests.rankpool import RankPool
from tests.runs import RunOutcome, column, run_rank, tiny_corpus, write_config

OVERRIDES = ["--train.strategy", "zero1", "--train.steps", "4", "--model.hidden_dropout", "0"]


def run_as_shipped(config_path: str, overrides: list[str]) -> RunOutcome:
    with mock.patch.object(OnceScaledPrecision, "backward", DeepSpeedPrecision.backward):
        return run_rank(config_path, overrides)


def test_lightning_and_deepspeed_both_divide_by_the_micro_batches(rank_pool: RankPool, tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#6170. When it is mended: `OnceScaledPrecision` can go."""
    corpus = tiny_corpus(tmp_path / "corpus").directory
    norms = []
    for name, run in (("once", run_rank), ("as_shipped", run_as_shipped)):
        config = write_config(tmp_path, corpus, name)
        rank_pool.run(run, str(config), [*OVERRIDES, "--train.micro_batch_size", "2"], world_size=1)
        norms.append(column(config.with_suffix(""), "grad_norm")[0])
    batch_size = 8  # of `write_config`
    assert norms[0] / norms[1] == pytest.approx(batch_size / 2, rel=1e-4)
