"""Runs on a remote corpus: the batches of the local one, for any ranks and workers, whatever the server does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.row_tables import count_rows
from tests.corpora import random_lengths, write_corpus
from tests.rankpool import RankError, RankPool
from tests.runs import column, run_rank, write_config
from tests.servers import HostileServer, serving

SHARES = {"error500": 0.07, "error503": 0.07, "reset": 0.06, "truncate": 0.05, "stall": 0.02, "wrong_byte": 0.05}
OPTIONS = ["--data.open_shards", "4", "--train.global_batch_size", "4", "--model.hidden_dropout", "0"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "corpus"
    written = write_corpus(directory, random_lengths(0, 24, 5), vocab_size=200)
    count_rows(directory, "best_fit", "bert", 64)
    assert len(written.manifest.splits["train"]) == 24
    return directory


def overrides(server: HostileServer, cache: Path, **settings: object) -> list[str]:
    """For a run that reads the corpus from a server through a cache of a few shards."""
    values = {"directory": cache, "stall_seconds": 0.3, "gigabytes": 1e-4, **settings}
    return [*OPTIONS, "--data.corpus", server.url] + [
        word for name, value in values.items() for word in (f"--data.cache.{name}", str(value))
    ]


@pytest.mark.proof
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_local_corpus(rank_pool: RankPool, corpus: Path, tmp_path: Path, workers: int) -> None:
    local, remote = write_config(tmp_path, corpus, "local"), write_config(tmp_path, corpus, "remote")
    rank_pool.run(run_rank, str(local), OPTIONS, world_size=1)
    with serving(corpus, shares=SHARES, stall_seconds=0.5) as server:
        words = [*overrides(server, tmp_path / "cache"), "--train.strategy", "ddp", "--data.workers", str(workers)]
        rank_pool.run(run_rank, str(remote), words, world_size=2, timeout_seconds=120)
        assert len(server.faults) >= 4
    assert column(tmp_path / "remote", "batch_digest") == column(tmp_path / "local", "batch_digest")


@pytest.mark.proof
def test_a_server_that_goes_down_stops_the_run_which_resumes_exactly(
    rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    local, remote = write_config(tmp_path, corpus, "local"), write_config(tmp_path, corpus, "remote")
    rank_pool.run(run_rank, str(local), OPTIONS, world_size=1)
    with serving(corpus, down_after=8) as server:
        words = overrides(server, tmp_path / "cache", retry_seconds=0.5)
        with pytest.raises(RankError, match=rf"{server.url}/train/\d+\.(tar|idx) could not be fetched .*503"):
            rank_pool.run(run_rank, str(remote), words, world_size=1, timeout_seconds=120)
        server.down_after = None
        rank_pool.run(run_rank, str(remote), words, world_size=1, timeout_seconds=120)
    steps = {int(step): digest for step, digest in zip(*both(tmp_path / "remote"), strict=True)}
    assert steps == {int(step): digest for step, digest in zip(*both(tmp_path / "local"), strict=True)}


def both(run: Path) -> tuple[list[int], list[str]]:
    return column(run, "step"), column(run, "batch_digest")
