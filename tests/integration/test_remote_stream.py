"""The stream over remote corpora yields the rows of the local ones: cold, warm, with a cache too small, in workers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.config.run import CacheConfig
from pipeline.data.corpora import files_at
from pipeline.data.row_tables import count_rows
from pipeline.data.rows import Rows
from pipeline.data.stream import RowStream, open_stream
from pipeline.shards.files import CorpusFiles, LocalFiles
from pipeline.shards.remote import RemoteFiles
from tests.corpora import Corpus
from tests.remote_corpora import quick_settings, small_corpus, wanted_tars
from tests.runs import write_config
from tests.servers import serving

STEPS = (0, 1, 2, 3, 40, 41, 7)
SHARES = {"error500": 0.1, "error503": 0.05, "reset": 0.05, "truncate": 0.05, "stall": 0.01, "wrong_byte": 0.05}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = small_corpus(tmp_path_factory.mktemp("corpus") / "corpus", num_shards=12)
    count_rows(corpus.directory, "best_fit", "bert", 64)
    return corpus


def stream_of(files: CorpusFiles, packing: str = "best_fit") -> RowStream:
    return open_stream(
        files, kind="bert", sequence_length=64, global_batch_size=8, packing=packing, open_shards=4, seed=5
    )


def check_same(ours: Rows, theirs: Rows) -> None:
    for name in ("tokens", "row_numbers", "shard", "segment_row", "segment_start", "document", "offset"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_rows_are_those_of_the_local_corpus_whatever_the_server_does(
    corpus: Corpus, tmp_path: Path, packing: str
) -> None:
    local = stream_of(LocalFiles(corpus.directory), packing)
    largest = max(num_bytes for _, num_bytes, _ in wanted_tars(corpus))
    with serving(corpus.directory, shares=SHARES, stall_seconds=0.5, seed=2) as server:
        settings = quick_settings(tmp_path / "cache", max_bytes=6 * largest)
        remote = stream_of(RemoteFiles(server.url, settings), packing)
        for step in STEPS:
            for rank in range(2):
                check_same(remote.rows(step, rank, 2), local.rows(step, rank, 2))
                names = remote.document_ids(remote.rows(step, rank, 2))
                assert names == local.document_ids(local.rows(step, rank, 2))
        assert server.faults


def test_a_whole_epoch_downloads_every_shard_once(corpus: Corpus, tmp_path: Path) -> None:
    with serving(corpus.directory) as server:
        remote = stream_of(RemoteFiles(server.url, quick_settings(tmp_path / "cache")))
        local = stream_of(LocalFiles(corpus.directory))
        for step in range(int(remote.num_rows / 8)):
            check_same(remote.rows(step), local.rows(step))
        assert server.count(".tar") == 12


def rows_until_it_stops(remote: RowStream, local: RowStream) -> tuple[int, str]:
    """The step at which no more shards can be had, and what is said."""
    for step in range(1, 200):
        try:
            rows = remote.rows(step)
        except UserError as error:
            return step, str(error)
        check_same(rows, local.rows(step))
    raise AssertionError("it never stopped")


def test_a_run_stopped_by_its_server_goes_on_where_it_was(corpus: Corpus, tmp_path: Path) -> None:
    local = stream_of(LocalFiles(corpus.directory))
    with serving(corpus.directory) as server:
        files = files_at(server.url, CacheConfig(directory=str(tmp_path / "cache"), retry_seconds=0.3))
        remote = stream_of(files)
        check_same(remote.rows(0), local.rows(0))
        server.shares["error503"] = 1.0
        step, problem = rows_until_it_stops(remote, local)
        assert re.match(rf"{server.url}/train/\d+\.(tar|idx) could not be fetched .*503", problem)
        server.shares.clear()
        again = stream_of(files)
        for number in (step, step + 1):
            check_same(again.rows(number), local.rows(number))


def test_row_tables_are_read_from_the_server_or_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    with serving(corpus.directory) as server:
        files = RemoteFiles(server.url, quick_settings(tmp_path / "cache"))
        stream_of(files)
        assert sum(name.startswith("rows/") for name, _ in server.requests) == 2
        with pytest.raises(UserError, match=r"rows/best_fit-\d+-32-.*\.npy does not exist.*pretrain corpus count-rows"):
            open_stream(files, kind="bert", sequence_length=32, global_batch_size=8)


def test_the_commands_take_a_url(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, corpus.directory)

    def facts(*words: str) -> dict[str, Any]:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    with serving(corpus.directory) as server:
        place = ["--data.corpus", server.url, "--data.cache.directory", str(tmp_path / "cache")]
        batch = ["batch", str(config), "--step", "3"]
        assert facts(*batch, *place)["digest"] == facts(*batch)["digest"]
        shown = ["config", "show", str(config)]
        assert facts(*shown, *place)["derived"] == facts(*shown)["derived"]
    down = [*place, "--data.cache.retry_seconds", "0.2"]
    assert main([*batch, *down]) == 2
    assert f"{server.url}/manifest.json could not be fetched for 0.2 seconds" in capsys.readouterr().err
