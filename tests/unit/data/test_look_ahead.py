"""Looking ahead: no step plans more than a few shards, caches stay bounded, remote shards are named ahead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.data.stream import RowStream, open_stream
from pipeline.data.windows import Windows
from pipeline.shards.files import LocalFiles, Wanted
from tests.corpora import Corpus, write_corpus

LANES = 16
ROWS_A_SHARD = 100


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """48 shards of 100 rows each: at 16 rows a step every lane reads 3 shards an epoch, and all change at once."""
    return write_corpus(tmp_path_factory.mktemp("ahead") / "corpus", [[30] * ROWS_A_SHARD] * 48)


def make_stream(files: LocalFiles, open_shards: int = LANES) -> RowStream:
    return open_stream(
        files, kind="bert", sequence_length=32, global_batch_size=LANES, packing="one_document", open_shards=open_shards
    )


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shards planned, in their order."""
    shards: list[int] = []
    plan_shard = Windows.plan_shard

    def counted(self: Windows, epoch: int, shard: int):
        shards.append(shard)
        return plan_shard(self, epoch, shard)

    monkeypatch.setattr(Windows, "plan_shard", counted)
    return shards


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_no_step_plans_more_than_a_few_shards(corpus: Corpus, planned: list[int], rank: int, world_size: int) -> None:
    stream = make_stream(corpus.files)
    stream.plan([0], rank, world_size)
    assert len(planned) == LANES // world_size  # a start has to plan what it reads
    most = 0
    for step in range(1, 1500):
        before = len(planned)
        stream.plan([step], rank, world_size)
        most = max(most, len(planned) - before)
        assert len(stream.phases[0].windows[0]._planned) <= stream.phases[0].windows[0].capacity
    assert len(planned) > 3 * 48 // world_size  # several epoch edges
    assert most <= 2


def test_a_jump_starts_anew_and_plans_only_what_it_reads(corpus: Corpus, planned: list[int]) -> None:
    stream = make_stream(corpus.files)
    for step in range(50):
        stream.plan([step])
    before = len(planned)
    stream.plan([100_000])
    assert len(planned) - before <= LANES


def keep_parts_of(monkeypatch: pytest.MonkeyPatch, num_rows: int) -> None:
    monkeypatch.setattr("pipeline.data.windows.ROWS_OF_PARTS", 0)
    monkeypatch.setattr("pipeline.data.windows.LEAST_ROWS", num_rows)


def test_parts_of_windows_that_were_left_are_given_up(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_parts_of(monkeypatch, 8)
    stream = make_stream(corpus.files)
    (windows,) = stream.phases[0].windows
    most = 0
    for step in range(ROWS_A_SHARD * 2):
        stream.plan([step])
        most = max(most, len(windows.parts))
        assert all(len(part.shard) <= 8 for part in windows.parts)
    assert most <= windows.capacity < 2 * LANES * ROWS_A_SHARD // 8


@pytest.mark.parametrize("part_rows", [1, 3, 50])
@pytest.mark.parametrize("open_shards", [LANES, 3 * LANES])
def test_the_size_of_a_part_changes_no_row(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, part_rows: int, open_shards: int
) -> None:
    whole = [make_stream(corpus.files, open_shards=open_shards).plan([step]) for step in range(0, 300, 7)]
    keep_parts_of(monkeypatch, part_rows)
    stream = make_stream(corpus.files, open_shards=open_shards)
    for step, expected in zip(range(0, 300, 7), whole, strict=True):
        found = stream.plan([step])
        for name in ("numbers", "epoch", "shard", "counts", "pieces"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()


class FarFiles(LocalFiles):
    """A local corpus that says it is far away, and remembers what it was told to fetch."""

    is_remote = True
    asked: list[list[str]]

    def fetch_ahead(self, wanted: Sequence[Wanted]) -> None:
        self.asked.append([name for name, _, _ in wanted])

    def read(self, name: str, sha256: str | None = None) -> bytes:
        assert not name.endswith(".idx") or any(name in names for names in self.asked), f"{name} was not asked for"
        return super().read(name, sha256)


@pytest.fixture
def far(corpus: Corpus) -> FarFiles:
    make_stream(corpus.files)  # keeps the row table, which a remote corpus must have
    files = FarFiles(corpus.directory)
    files.asked = []
    return files


def names_of(shards: set[int], ending: str) -> set[str]:
    return {f"train/{shard:05d}.{ending}" for shard in shards}


def test_remote_files_are_told_what_comes_before_it_is_opened(far: FarFiles) -> None:
    stream = make_stream(far)
    stream.rows(0)
    told: set[str] = set()
    for step in range(1, 300):
        before = set(stream.sources[0].shard._kept)
        known = set(told)
        told.update(name for names in far.asked for name in names)
        stream.rows(step)
        opened = set(stream.sources[0].shard._kept) - before
        assert names_of(opened, "tar") | names_of(opened, "idx") <= known, step  # asked for in an earlier step


@pytest.mark.parametrize("by_number", [False, True])
def test_a_cold_start_asks_for_all_indexes_at_once_and_then_for_the_tars(far: FarFiles, by_number: bool) -> None:
    stream = make_stream(far)
    if by_number:
        stream.rows_numbered(np.arange(LANES))
    else:
        stream.rows(0)
    opened = set(stream.sources[0].shard._kept)
    assert len(opened) == LANES
    for_planning, for_rows = far.asked
    assert set(for_planning[:LANES]) == names_of(opened, "idx")
    assert set(for_planning[LANES:]) == set(for_rows) == names_of(opened, "tar")


def test_what_was_planned_and_not_yet_fetched_is_asked_for_again(far: FarFiles) -> None:
    """A list replaces the one before it; a slow server may not have come to what was asked for first."""
    stream = make_stream(far)
    opened: dict[str, int] = {}
    asked: list[tuple[int, list[str]]] = []
    for step in range(600):
        num_asked = len(far.asked)
        stream.rows(step)
        asked += [(step, names) for names in far.asked[num_asked:]]
        for name in names_of(set(stream.sources[0].shard._kept), "tar"):
            opened.setdefault(name, step)
    assert len(opened) == 48
    told: set[str] = set()
    for step, names in asked:
        assert {name for name in told if opened[name] > step + 8} <= set(names)
        told.update(name for name in names if name.endswith(".tar"))
