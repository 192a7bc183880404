"""The loop makes of the same batches what Lightning's own loop makes of them, to the bit."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision

from pipeline.train import setup
from pipeline.train.precision import DirectHooks
from tests.rankpool import RankPool
from tests.runs import RunOutcome, column, run_rank, tiny_corpus, weights_of, write_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).directory


def run_with_stock_loop(config_path: str, overrides: list[str]) -> RunOutcome:
    hooks = {name: getattr(Precision, name) for name in ("pre_backward", "post_backward", "_after_closure")}
    with (
        mock.patch.object(setup, "use_step_loop"),
        mock.patch.multiple(DirectHooks, **hooks),
        # It would walk through every field of a batch, and refuse a frozen dataclass.
        mock.patch.object(Precision, "convert_input", lambda self, data: data),
        mock.patch.object(DeepSpeedPrecision, "convert_input", lambda self, data: data),
    ):
        return run_rank(config_path, overrides)


@pytest.mark.parametrize(
    ("strategy", "precision", "world_size"),
    [("single", "fp32", 1), ("ddp", "fp32", 2), ("ddp", "bf16", 2), ("zero1", "bf16", 2), ("zero3", "fp32", 2)],
)
def test_it_trains_as_the_loop_of_lightning(
    strategy: str, precision: str, world_size: int, corpus: Path, rank_pool: RankPool, tmp_path: Path
) -> None:
    runs = []
    for name, run in (("ours", run_rank), ("stock", run_with_stock_loop)):
        config = write_config(tmp_path, corpus, name)
        overrides = ["--train.strategy", strategy, "--train.precision", precision, "--train.micro_batch_size", "1"]
        rank_pool.run(run, str(config), overrides, world_size=world_size)
        runs.append(config.with_suffix(""))
    ours, stock = runs
    for name in ("step", "loss", "grad_norm", "lr", "batch_digest"):
        assert column(ours, name) == column(stock, name), name
    last = column(ours, "step")[-1]
    weights, expected = weights_of(ours, last), weights_of(stock, last)
    assert weights.keys() == expected.keys()
    assert all((weights[name] == expected[name]).all() for name in expected)
