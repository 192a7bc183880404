"""A mixture of objectives on several ranks: each step's objective, losses and evaluations are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpora import random_lengths, write_corpus
from tests.rankpool import RankPool
from tests.runs import metrics_of, run_rank, write_config

MIXTURE = [
    *("--data.packing", "pairs_nsp", "--evaluation.rows", "13", "--train.steps", "10", "--model.hidden_dropout", "0"),
    "--objective.mixture",
    "[{name: mlm, weight: 0.5}, {label: dense, mask_rate: 0.4, weight: 0.5}, {name: mlm+nsp, label: pairs}]",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "corpus"
    return write_corpus(
        directory, random_lengths(0, 3, 60), validation=random_lengths(5, 2, 20), vocab_size=20
    ).directory


@pytest.fixture(scope="module")
def alone(rank_pool: RankPool, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_config(tmp_path_factory.mktemp("alone"), corpus)
    rank_pool.run(run_rank, str(config), MIXTURE, world_size=1)
    return config.with_suffix("")


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks_train_and_evaluate_as_one_process(
    strategy: str, rank_pool: RankPool, corpus: Path, alone: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    rank_pool.run(run_rank, str(config), [*MIXTURE, "--train.strategy", strategy], world_size=2)
    shares = []
    for line, other in zip(metrics_of(config.with_suffix("")), metrics_of(alone), strict=True):
        names = [name for name in other if name.startswith(("loss", "validation_"))]
        assert [name for name in line if name.startswith(("loss", "validation_"))] == names
        assert {name: line[name] for name in names} == pytest.approx({name: other[name] for name in names}, abs=3e-4)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert line["batch_digest"] == other["batch_digest"]
        shares += [line[name] for name in names if "accuracy" in name]
    assert len(shares) == 4
    assert sum(0 < share < 1 for share in shares) >= 3
