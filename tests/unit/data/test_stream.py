"""The stream: every token once an epoch, one global batch whatever asks for it, errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.base.keyed import key, permutation
from pipeline.data.order import ROWS, SHARDS, SourceOrder
from pipeline.data.row_format import RowKind
from pipeline.data.row_tables import table_bytes
from pipeline.data.rows import Rows
from pipeline.data.stream import RowStream
from pipeline.data.stream import open_stream as open_one_corpus
from tests.corpora import NUM_SPECIAL, Corpus, random_lengths, write_corpus

PACKING_NAMES = ("best_fit", "concatenate")


def open_stream(corpus: Corpus, **changes) -> RowStream:
    settings = {"kind": "bert", "sequence_length": 32, "open_shards": 8, "seed": 1, "global_batch_size": 12} | changes
    if "length" in settings:
        settings["sequence_length"] = settings.pop("length")
    return open_one_corpus(corpus.files, settings.pop("split", "train"), **settings)


def assert_equal_rows(one: Rows, other: Rows) -> None:
    for name in one.__dataclass_fields__:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=name)
            assert left.dtype == right.dtype, name


def join(parts: list[Rows]) -> Rows:
    """Rows of several ranks as one; segment rows are shifted by the rows before."""
    before = np.cumsum([0] + [len(part.row_numbers) for part in parts])
    columns = {}
    for name in parts[0].__dataclass_fields__:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            continue
        if name == "segment_row":
            arrays = [array + np.int32(shift) for array, shift in zip(arrays, before[:-1], strict=True)]
        columns[name] = np.concatenate(arrays)
    return Rows(**columns)


def text_of(rows: Rows, epochs: range) -> Counter:
    """(epoch, document, token number, id) of every token of text, from rows of these epochs."""
    found: Counter = Counter()
    for segment, row in enumerate(rows.segment_row.tolist()):
        epoch = int(rows.epoch[row])
        if epoch not in epochs:
            continue
        start = rows.segment_start[segment]
        slots = rows.tokens[row, start : start + rows.segment_length[segment]]
        for place, token in enumerate(slots[slots >= NUM_SPECIAL].tolist()):
            found[epoch, int(rows.document[segment]), int(rows.offset[segment]) + place, token] += 1
    return found


def text_on_disk(corpus: Corpus, epochs: range, split: str = "train") -> Counter:
    documents = [document for shard in corpus.documents[split] for document in shard]
    return Counter(
        (epoch, number, place, token)
        for epoch in epochs
        for number, document in enumerate(documents)
        for place, token in enumerate(document.tokens.tolist())
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", random_lengths(0, 7, 25))


SHAPES = [
    # shards, documents a shard, rows a step, open shards
    (1, 3, 40, 256),  # more lanes than rows: a batch spans epochs
    (1, 60, 12, 8),
    (2, 20, 7, 3),
    (7, 20, 12, 8),
    (7, 20, 2, 64),  # windows larger than the corpus
    (50, 4, 16, 16),
    (50, 4, 5, 20),  # windows of several shards, the last one short
]


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("packing", PACKING_NAMES)
@pytest.mark.parametrize(("num_shards", "num_documents", "batch", "open_shards"), SHAPES)
def test_every_token_once_an_epoch(
    tmp_path: Path, num_shards: int, num_documents: int, batch: int, open_shards: int, packing: str, kind: RowKind
) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(num_shards, num_shards, num_documents, 30.0))
    stream = open_stream(corpus, packing=packing, kind=kind, global_batch_size=batch, open_shards=open_shards)
    epochs = range(3)
    num_steps = -(-len(epochs) * stream.num_rows // batch)
    found: Counter = Counter()
    for rows in stream.rows_of_steps(range(num_steps)):
        found.update(text_of(rows, epochs))
    assert found == text_on_disk(corpus, epochs)


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("packing", PACKING_NAMES)
def test_rows_hold_specials_and_padding_where_they_belong(corpus: Corpus, packing: str, kind: RowKind) -> None:
    stream = open_stream(corpus, packing=packing, kind=kind)
    special = corpus.manifest.special_ids
    lengths = [len(document.tokens) for shard in corpus.documents["train"] for document in shard]
    without_end = 0
    for rows in stream.rows_of_steps(range(2 * (stream.num_rows // 12))):
        filled = np.zeros(rows.tokens.shape, bool)
        for segment, row in enumerate(rows.segment_row.tolist()):
            start, size = rows.segment_start[segment], rows.segment_length[segment]
            assert not filled[row, start : start + size].any()
            assert filled[row, :start].all()
            filled[row, start : start + size] = True
            slots = rows.tokens[row, start : start + size]
            if kind == "bert":
                assert slots[0] == special["cls"]
                assert slots[-1] == special["sep"]
                assert (slots[1:-1] >= NUM_SPECIAL).all()
                continue
            text = slots[slots >= NUM_SPECIAL]
            ends = rows.offset[segment] + len(text) == lengths[rows.document[segment]]
            if ends and start + len(text) < rows.tokens.shape[1]:
                assert slots[-1] == special["eos"]
                assert len(text) == size - 1
            else:  # goes on in another row, or its end-of-text would stand alone in the next
                assert len(text) == size
                without_end += int(ends)
        assert (rows.tokens[~filled] == special["pad"]).all()
        assert (rows.tokens[filled] != special["pad"]).all()
    if kind == "gpt":
        assert (without_end > 0) == (packing == "concatenate")


def order_of(stream: RowStream) -> SourceOrder:
    return stream.phases[0].windows[0].order


def slow_epoch(stream: RowStream, epoch: int) -> list[tuple[int, int]]:
    """(shard, packed row) of every place of an epoch's sequence, straight from the definitions."""
    order = order_of(stream)
    counts, seed = order.rows_per_shard.tolist(), stream.settings.seed
    shards = permutation(key(seed, SHARDS, 0, epoch), len(counts)).tolist()
    sequence = []
    for window, first in enumerate(range(0, len(shards), order.window_shards)):
        rows = [(shard, row) for shard in shards[first : first + order.window_shards] for row in range(counts[shard])]
        sequence += [rows[at] for at in permutation(key(seed, ROWS, 0, epoch, window), len(rows)).tolist()]
    return sequence


def slow_stream(stream: RowStream, num_epochs: int) -> list[tuple[int, int, int, int]]:
    """(lane, epoch, shard, packed row) of every row: lanes are lists, the next of each is taken in turn."""
    rows = []
    for epoch in range(num_epochs):
        sequence = slow_epoch(stream, epoch)
        num_lanes = order_of(stream).lanes
        share, longer = divmod(len(sequence), num_lanes)
        lanes, begin = [], 0
        for lane in range(num_lanes):
            end = begin + share + (lane < longer)
            lanes.append(sequence[begin:end])
            begin = end
        for turn in range(share + 1):
            rows += [(number, epoch, *lane[turn]) for number, lane in enumerate(lanes) if turn < len(lane)]
    return rows


@pytest.mark.parametrize(("batch", "open_shards"), [(12, 8), (5, 16), (40, 4), (300, 300)])
def test_steps_equal_a_slow_reading_of_the_definitions(corpus: Corpus, batch: int, open_shards: int) -> None:
    stream = open_stream(corpus, packing="concatenate", global_batch_size=batch, open_shards=open_shards)
    slow = slow_stream(stream, 3)
    for step in range(3 * stream.num_rows // batch):
        numbers = sorted(range(step * batch, (step + 1) * batch), key=lambda n: (slow[n][0], n))
        rows = stream.rows(step)
        assert rows.row_numbers.tolist() == numbers
        assert rows.epoch.tolist() == [slow[n][1] for n in numbers]
        assert rows.shard.tolist() == [slow[n][2] for n in numbers]


@pytest.mark.parametrize("packing", PACKING_NAMES)
def test_ranks_join_to_the_same_global_batch(corpus: Corpus, packing: str) -> None:
    for step in (0, 3, 41, 1000):
        whole = open_stream(corpus, packing=packing).rows(step)
        for world_size in range(1, 9):
            parts = [open_stream(corpus, packing=packing).rows(step, rank, world_size) for rank in range(world_size)]
            assert_equal_rows(join(parts), whole)


def test_a_fresh_stream_gives_the_same_rows_at_any_step(corpus: Corpus) -> None:
    steps = np.random.default_rng(0).integers(0, 100_000, 12).tolist()
    walked = open_stream(corpus)
    together = walked.rows_of_steps(steps, 1, 3)
    for step, rows in zip(steps, together, strict=True):
        assert_equal_rows(open_stream(corpus).rows(step, 1, 3), rows)
        assert_equal_rows(walked.rows(step, 1, 3), rows)


def test_caches_too_small_for_a_batch_change_nothing(corpus: Corpus) -> None:
    small, large = (open_stream(corpus, global_batch_size=64, open_shards=2) for _ in range(2))
    (windows,) = small.phases[0].windows
    windows.capacity = windows.epoch.capacity = small.sources[0].shard.capacity = 1
    for step in range(20):
        assert_equal_rows(small.rows(step), large.rows(step))


def test_a_small_batch_opens_no_more_files_than_a_large_one(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [[20, 30]] * 150)
    stream = open_stream(corpus, open_shards=64, global_batch_size=2)
    assert (order_of(stream).lanes, order_of(stream).window_shards) == (2, 32)
    before = len(os.listdir("/proc/self/fd"))
    for step in range(stream.num_rows // 2):
        stream.rows(step)
    assert len(os.listdir("/proc/self/fd")) - before <= 64 + 32


def test_a_pickled_stream_gives_the_same_rows(corpus: Corpus) -> None:
    stream = open_stream(corpus)
    expected = stream.rows(5)
    assert_equal_rows(pickle.loads(pickle.dumps(stream)).rows(5), expected)


def test_a_rank_opens_only_the_shards_of_its_rows(corpus: Corpus) -> None:
    stream = open_stream(corpus, global_batch_size=6, open_shards=6)
    opened: list[int] = []
    cache = stream.sources[0].shard
    make = cache.make
    cache.make = lambda number: opened.append(number) or make(number)
    rows = stream.rows(0, 1, 3)
    assert sorted(opened) == sorted(set(rows.shard.tolist()))
    assert len(opened) <= 2


def test_epochs_and_seeds_order_and_pack_differently(corpus: Corpus) -> None:
    def documents(seed: int, epoch: int) -> list[int]:
        stream = open_stream(corpus, seed=seed, global_batch_size=1, open_shards=4)
        return [int(stream.rows(epoch * stream.num_rows + n).document[0]) for n in range(20)]

    assert len({tuple(documents(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_every_epoch_and_shard_is_cut_and_packed_anew(tmp_path: Path) -> None:
    lengths = [100] * 20 + [9] * 40
    corpus = write_corpus(tmp_path / "corpus", [lengths, lengths])
    stream = open_stream(corpus, global_batch_size=1, open_shards=1)
    cuts: dict[tuple[int, int], set] = {}
    neighbours: dict[tuple[int, int], set] = {}
    for rows in stream.rows_of_steps(range(2 * stream.num_rows)):
        name = int(rows.epoch[0]), int(rows.shard[0])
        documents = rows.document - len(lengths) * name[1]
        cuts.setdefault(name, set()).update(zip(documents.tolist(), rows.offset.tolist(), strict=True))
        neighbours.setdefault(name, set()).add(tuple(sorted(documents.tolist())))
    for found in (cuts, neighbours):
        assert len(found) == 4
        assert len({frozenset(of_shard) for of_shard in found.values()}) == 4


def test_document_ids_name_every_segment(corpus: Corpus) -> None:
    stream = open_stream(corpus)
    names = [document.name for shard in corpus.documents["train"] for document in shard]
    rows = stream.rows(17)
    assert stream.document_ids(rows) == [names[number] for number in rows.document]


def test_rows_are_read_by_number_as_asked(corpus: Corpus) -> None:
    stream = open_stream(corpus, split="validation", packing="concatenate", length=16)
    numbers = np.arange(stream.num_rows)
    rows = stream.rows_numbered(numbers)
    assert rows.row_numbers.tolist() == numbers.tolist()
    assert text_of(rows, range(1)) == text_on_disk(corpus, range(1), "validation")
    part = stream.rows_numbered(np.array([4, 0, 0]))
    np.testing.assert_array_equal(part.tokens, rows.tokens[[4, 0, 0]])


def test_first_row_and_fill(corpus: Corpus) -> None:
    stream = open_stream(corpus)
    assert stream.first_row(7) == 84
    tokens = sum(len(document.tokens) for shard in corpus.documents["train"] for document in shard)
    assert stream.fill == tokens / (stream.num_rows * 32)
    assert 0.8 < stream.fill <= 1.0
    assert stream.rows_of_steps([]) == []


def test_settings_tell_of_every_setting_of_the_order(corpus: Corpus) -> None:
    changes: list[dict] = [
        {},
        {"seed": 2},
        {"packing": "concatenate"},
        {"open_shards": 9},
        {"global_batch_size": 24},
        {"kind": "gpt"},
        {"length": 64},
        {"split": "validation"},
    ]
    found = [json.dumps(open_stream(corpus, **change).settings_before(0)) for change in changes]
    assert len(set(found)) == len(changes)
    assert json.dumps(open_stream(corpus).settings_before(0)) == found[0]


def test_the_stream_of_a_pinned_corpus_is_pinned(tmp_path: Path) -> None:
    # A change of these numbers changes every run: raise a packing's version, or do not make it.
    corpus = write_corpus(tmp_path / "corpus", [[5, 9, 30, 3], [12, 7], [70, 2, 2]])
    rows = open_stream(corpus, global_batch_size=4, open_shards=4, length=16).rows(2)
    assert rows.row_numbers.tolist() == [8, 9, 10, 11]
    assert list(zip(rows.document.tolist(), rows.offset.tolist(), strict=True)) == [
        (2, 0),
        (0, 0),
        (2, 14),
        (8, 0),
        (7, 0),
        (6, 0),
    ]


def test_wrong_settings_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'test'; it has train, validation"):
        open_stream(corpus, split="test")
    with pytest.raises(UserError, match=r"global_batch_size is 0 and data\.open_shards is 8; both must be at least 1"):
        open_stream(corpus, global_batch_size=0)
    with pytest.raises(UserError, match=r"data\.packing is 'tight'"):
        open_stream(corpus, packing="tight")
    with pytest.raises(UserError, match=r"16 ranks share 12 rows a step"):
        open_stream(corpus).rows(0, 0, 16)
    with pytest.raises(ValueError, match="step -1"):
        open_stream(corpus).rows(-1)
    empty = write_corpus(tmp_path / "empty", [[5]], validation=[[]])
    with pytest.raises(UserError, match=r"The split 'validation' of .*empty has no documents"):
        open_stream(empty, split="validation")


def test_damage_met_on_the_way_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[5, 9, 30], [12, 7]])
    stream = open_stream(corpus, packing="concatenate")
    path = corpus.directory / "train/00000.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(
        UserError, match=rf"00000\.tar has {len(content) - 512} bytes; the manifest says {len(content)}"
    ):
        stream.rows_of_steps(range(3))


def test_too_many_open_files_are_told(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pipeline.data.source.Shard.open", fail)
    with pytest.raises(UserError, match=r"too many open files.* Lower data\.open_shards"):
        open_stream(corpus).rows(0)


def test_an_index_that_packs_otherwise_than_the_table_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[20, 20, 20, 2]])
    open_stream(corpus, length=32)  # keeps the table
    (table,) = (corpus.directory / "rows").glob("*.npy")
    table.write_bytes(table_bytes(f"rows/{table.name}", np.load(table) - 1))
    with pytest.raises(
        UserError, match=r"Shard train/00000 packs into 3 rows, but the row table says 2: .*Delete that folder"
    ):
        open_stream(corpus, length=32).rows(0)
