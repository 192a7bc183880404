"""Corpora that exist only as arithmetic are corpora for the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import planning, synthetic
from pipeline.base.errors import UserError
from pipeline.data.stream import open_stream
from pipeline.shards.index import read_index
from pipeline.shards.manifest import read_manifest


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("synthetic")
    synthetic.write(directory, 40, 512)
    return directory


def test_every_index_passes_the_readers_checks_and_counts_are_right(directory: Path) -> None:
    files = synthetic.SyntheticFiles(directory)
    manifest = read_manifest(files)
    for number in (0, 15, 16, 39):
        index = read_index(files, "train", number, manifest)
        assert len(index.lengths) == synthetic.DOCUMENTS_A_SHARD
        assert int(index.lengths.sum()) == manifest.splits["train"].tokens[number]
        assert (np.diff(index.starts) >= index.lengths[:-1]).all()
    assert files.num_indexes == 4
    assert files.making_seconds > 0


def test_a_damaged_template_is_refused(directory: Path) -> None:
    files = synthetic.SyntheticFiles(directory)
    files._templates[3] = files._templates[3][:-1] + b"\1"
    with pytest.raises(UserError, match="has sha256"):
        read_index(files, "train", 3, read_manifest(files))


def test_plans_depend_on_the_step_alone_and_the_table_is_that_of_the_packing(directory: Path) -> None:
    def rows_of_step_12(first: int):
        stream = open_stream(
            synthetic.SyntheticFiles(directory), kind="bert", sequence_length=512, global_batch_size=32, open_shards=8
        )
        for step in range(first, 12):
            stream.plan([step])
        planned = stream.plan([12])
        return planned.numbers.tolist(), planned.shard.tolist()

    assert rows_of_step_12(0) == rows_of_step_12(12)


def test_a_measurement_reports_what_it_did(directory: Path) -> None:
    found = planning.measure(directory, first_step=5, num_steps=3, rank=0, world_size=8, untimed_steps=0)
    measured = planning.Measured(**found)
    assert 0 < measured.open_indexes <= 40
    assert measured.step_milliseconds["worst"] >= measured.step_milliseconds["median"] > 0
    assert not measured.epoch_edge
    edge = planning.last_step_of_epoch(directory)
    assert planning.measure(directory, edge - 2, 3, 0, 8, 0)["epoch_edge"]
