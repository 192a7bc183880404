"""Rows planned together against rows planned one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.planned import check_blocks, plan_rows
from pipeline.data.stream import RowStream, open_stream
from tests.corpora import random_lengths, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", random_lengths(3, 5, 30)).directory


def make_stream(corpus: Path, packing: str = "best_fit", open_shards: int = 4) -> RowStream:
    return open_stream(
        corpus, kind="bert", sequence_length=32, global_batch_size=6, packing=packing, open_shards=open_shards
    )


@pytest.mark.parametrize("open_shards", [1, 4, 20])
@pytest.mark.parametrize("packing", ["best_fit", "pairs_nsp"])
def test_rows_planned_together_equal_rows_planned_alone(corpus: Path, packing: str, open_shards: int) -> None:
    generator = np.random.default_rng(open_shards)
    stream = make_stream(corpus, packing, open_shards)
    phase, alone = stream.phases[0], make_stream(corpus, packing, open_shards).phases[0]
    for size in (0, 1, 7, 60):
        numbers = generator.integers(0, 3 * stream.num_rows, size)  # repeated, out of order, over three epochs
        together = plan_rows(numbers, phase.places(numbers), phase, step=-1)
        one_by_one = [
            plan_rows(numbers[row : row + 1], alone.places(numbers[row : row + 1]), alone, step=-1)
            for row in range(size)
        ]
        assert together.numbers.tolist() == numbers.tolist()
        assert together.counts.sum() == len(together.pieces)
        for name in ("epoch", "source", "shard", "counts", "pieces"):
            parts = [getattr(one, name) for one in one_by_one]
            assert getattr(together, name).tolist() == [value for part in parts for value in part.tolist()]


def test_shards_are_named_once(corpus: Path) -> None:
    stream = make_stream(corpus)
    numbers = np.arange(40)
    planned = plan_rows(numbers, stream.phases[0].places(numbers), stream.phases[0], step=-1)
    names, shard_of_row = planned.shards()
    assert len(set(names)) == len(names)
    found = [names[number] for number in shard_of_row.tolist()]
    assert found == list(zip(planned.source.tolist(), planned.shard.tolist(), strict=True))


def test_only_the_blocks_of_planned_pieces_are_checked(corpus: Path) -> None:
    stream = make_stream(corpus)
    numbers = np.array([3, 11, 12, 30])
    planned = plan_rows(numbers, stream.phases[0].places(numbers), stream.phases[0], step=-1)
    names, shard_of_row = planned.shards()
    asked: dict[tuple[int, int], set[int]] = {name: set() for name in names}
    for row, (end, count) in enumerate(zip(np.cumsum(planned.counts), planned.counts, strict=True)):
        name = names[shard_of_row[row]]
        index = stream.sources[0].index(name[1])
        asked[name].update(index.block_of(planned.pieces["document"][end - count : end]).tolist())
    shards = [RecordingShard(stream, name) for name in names]
    check_blocks(planned, shards, shard_of_row)  # type: ignore[arg-type]  # what it uses of a shard
    assert [shard.checked for shard in shards] == list(asked.values())


class RecordingShard:
    """Keeps the blocks that it was asked to check."""

    is_checked = False

    def __init__(self, stream: RowStream, name: tuple[int, int]) -> None:
        self.index = stream.sources[name[0]].index(name[1])
        self.checked: set[int] = set()

    def check_blocks(self, blocks: np.ndarray) -> None:
        self.checked.update(blocks.tolist())
