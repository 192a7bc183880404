"""The stream over mixtures, stages and exclusions: the same batches for every world size and start, each token once."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.config.stages import Stages
from pipeline.data.exclusion import Exclusions
from pipeline.data.gather import join_rows
from pipeline.data.rows import Rows
from pipeline.data.source import Source
from pipeline.data.stream import RowStream, StreamSettings
from pipeline.data.where import find_document, readings
from tests.corpora import NUM_SPECIAL, Corpus, random_lengths, write_corpus

STAGES = Stages.of_lengths([(7, 6, 32), (9, 12, 32), (11, 5, 64), (4, 10, 32), (None, 16, 48)])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    directory = tmp_path_factory.mktemp("mixed")
    shapes = ((3, 12), (5, 20), (1, 9))
    return [
        write_corpus(directory / str(number), random_lengths(number, *shape), seed=number)
        for number, shape in enumerate(shapes)
    ]


def open_stream(
    corpora: list[Corpus], stages: Stages = STAGES, exclusions: dict[str, int] | None = None, **changes
) -> RowStream:
    weights, epochs = changes.pop("weights", [None] * len(corpora)), changes.pop("epochs", [None] * len(corpora))
    sources = [
        Source(corpus.files, corpus.manifest, weight, limit)
        for corpus, weight, limit in zip(corpora, weights, epochs, strict=True)
    ]
    settings = StreamSettings(
        **({"packing": "best_fit", "kind": "bert", "seed": 3, "open_shards": 6} | changes), stages=stages
    )
    return RowStream(sources, "train", settings, exclusions=None if exclusions is None else Exclusions(exclusions))


def facts(rows: Rows) -> list[tuple]:
    """All that a row says, a row each."""
    found = []
    for row, number in enumerate(rows.row_numbers.tolist()):
        own = rows.segment_row == row
        columns = (rows.segment_start, rows.segment_length, rows.document, rows.offset)
        segments = tuple(zip(*(column[own].tolist() for column in columns), strict=True))
        found.append((number, rows.tokens[row].tolist(), segments, rows.epoch[row], rows.shard[row], rows.source[row]))
    return found


@pytest.mark.parametrize("packing", ["best_fit", "concatenate", "one_document", "pairs_nsp"])
def test_every_world_size_start_and_grouping_gives_the_same_rows(corpora: list[Corpus], packing: str) -> None:
    walked = open_stream(corpora, packing=packing, weights=[2.0, 1.0, 0.5])
    expected = [facts(rows) for rows in walked.rows_of_steps(range(45))]
    generator = np.random.default_rng(0)
    for trial in range(30):
        first = int(generator.integers(0, 44))
        steps = range(first, min(45, first + int(generator.integers(1, 9))))
        world_size = int(generator.integers(1, 6))
        stream = walked if trial % 3 == 0 else open_stream(corpora, packing=packing, weights=[2.0, 1.0, 0.5])
        of_ranks = [stream.rows_of_steps(steps, rank, world_size) for rank in range(world_size)]
        for place, step in enumerate(steps):
            assert facts(join_rows([of_rank[place] for of_rank in of_ranks])) == expected[step]


def text_of(rows_of_steps: list[Rows]) -> Counter:
    """(source, epoch, document, token number) of every token of text."""
    found: Counter = Counter()
    for rows in rows_of_steps:
        for segment, row in enumerate(rows.segment_row.tolist()):
            start, length = rows.segment_start[segment], rows.segment_length[segment]
            text = rows.tokens[row, start : start + length]
            for token in range(int((text >= NUM_SPECIAL).sum())):
                place = int(rows.offset[segment]) + token
                found[int(rows.source[row]), int(rows.epoch[row]), int(rows.document[segment]), place] += 1
    return found


def whole_epoch(corpora: list[Corpus], source: int, epoch: int) -> Counter:
    first = sum(len(shard) for corpus in corpora[:source] for shard in corpus.documents["train"])
    documents = [document for shard in corpora[source].documents["train"] for document in shard]
    return Counter(
        (source, epoch, first + number, token)
        for number, document in enumerate(documents)
        for token in range(len(document.tokens))
    )


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_each_source_is_read_once_an_epoch(corpora: list[Corpus], packing: str) -> None:
    stages = Stages.of_lengths([(3, 4, 32), (None, 9, 32)])
    stream = open_stream(corpora, stages, packing=packing, weights=[0.5, 0.3, 0.2])
    found = text_of(stream.rows_of_steps(range(120)))
    assert max(found.values()) == 1
    for source in range(3):
        epochs = int(stream.source_epochs_before(120)[source])
        assert epochs >= 1
        for epoch in range(epochs):
            expected = whole_epoch(corpora, source, epoch)
            own = Counter({name: count for name, count in found.items() if name[:2] == (source, epoch)})
            assert own == expected


def test_a_change_of_sequence_length_repeats_no_token(corpora: list[Corpus]) -> None:
    found = text_of(open_stream(corpora, weights=[1.0, 1.0, 0.3]).rows_of_steps(range(60)))
    assert max(found.values()) == 1


def test_sources_that_drop_out_give_whole_epochs_and_then_the_data_end(corpora: list[Corpus]) -> None:
    stages = Stages.single(8, 32)
    stream = open_stream(corpora, stages, epochs=[1, 2, 1])
    last_row = stream.phases[0].last_row
    assert last_row is not None
    rows = stream.rows_numbered(np.arange(last_row))
    expected = whole_epoch(corpora, 0, 0) + whole_epoch(corpora, 1, 0) + whole_epoch(corpora, 1, 1)
    assert text_of([rows]) == expected + whole_epoch(corpora, 2, 0)
    steps = last_row // 8
    stream.check_rows(steps)
    with pytest.raises(UserError, match=rf"train\.steps is {steps + 1}, but .* dropped out after step {steps}"):
        stream.check_rows(steps + 1)
    with pytest.raises(UserError, match=rf"The data end at row {last_row}, before row"):
        stream.rows(steps)


def test_shares_are_those_of_the_tokens(corpora: list[Corpus]) -> None:
    # One document a row: rows of the sources hold very different numbers of tokens.
    stream = open_stream(corpora, Stages.single(16, 64), packing="one_document", weights=[5.0, 3.0, 2.0])
    found = text_of(stream.rows_of_steps(range(300)))
    tokens = Counter()
    for (source, *_), count in found.items():
        tokens[source] += count
    shares = np.array([tokens[source] for source in range(3)]) / tokens.total()
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.01)


def test_the_exponent_lifts_small_sources(corpora: list[Corpus]) -> None:
    sizes = np.array([float(corpus.manifest.splits["train"].tokens.sum()) for corpus in corpora])
    for exponent in (1.0, 0.7, 0.0):
        expected = sizes**exponent / (sizes**exponent).sum()
        np.testing.assert_allclose(open_stream(corpora, exponent=exponent).phases[0].token_shares, expected)


def test_look_ahead_and_its_absence_give_the_same_rows(corpora: list[Corpus]) -> None:
    stream = open_stream(corpora)
    for step in range(80):
        assert facts(stream.rows(step)) == facts(open_stream(corpora).rows(step)), step
    # What was planned ahead was planned for use, and what has been left is gone.
    for phase in stream.phases:
        for windows in phase.windows:
            assert len(windows._planned) <= windows.capacity


def test_a_pickled_stream_gives_the_same_rows(corpora: list[Corpus]) -> None:
    stream = open_stream(corpora, exclusions={"train-0/1 é": 3})
    assert facts(pickle.loads(pickle.dumps(stream)).rows(20)) == facts(stream.rows(20))


def test_excluded_documents_are_left_out_from_their_step_on_and_nothing_else_moves(corpora: list[Corpus]) -> None:
    names = {"train-0/1 é": 10, "train-2/7 é": 25, "train-0/3 é": 0}
    plain, without = open_stream(corpora), open_stream(corpora, exclusions=names)
    dropped = 0
    for step in range(60):
        before, after = plain.rows(step), without.rows(step)
        assert after.row_numbers.tolist() == before.row_numbers.tolist()
        assert after.epoch.tolist() == before.epoch.tolist()
        kept = [names.get(name, 1 << 60) > step for name in plain.document_ids(before)]
        dropped += kept.count(False)
        expected = list(
            zip(
                before.segment_row[kept].tolist(),
                before.document[kept].tolist(),
                before.offset[kept].tolist(),
                strict=True,
            )
        )
        found = list(zip(after.segment_row.tolist(), after.document.tolist(), after.offset.tolist(), strict=True))
        assert found == expected
        if all(kept):
            assert facts(after) == facts(before)
    assert dropped > 5


def parts_of(stream: RowStream, rows: Rows) -> list[tuple[str, int, int]]:
    """(document, row, first token) of every segment, and of the second parts of pairs."""
    row = rows.segment_row.tolist()
    found = list(zip(stream.document_ids(rows), row, rows.offset.tolist(), strict=True))
    if rows.second_offset is not None:
        found += zip(stream.second_document_ids(rows), row, rows.second_offset.tolist(), strict=True)
    return [part for part in found if part[2] >= 0]


@pytest.mark.parametrize("packing", ["best_fit", "concatenate", "pairs_nsp"])
def test_where_finds_every_reading_and_no_other(corpora: list[Corpus], packing: str) -> None:
    steps = 60
    # The documents asked for, and most of those that may be the other part of a pair with them.
    excluded = {"train-1/5 é": 22, **{f"train-{shard}/{number} é": 8 for shard in (0, 2) for number in range(4, 20)}}
    stream = open_stream(corpora, packing=packing, exclusions=excluded, weights=[1.0, 2.0, 1.0])
    seen: dict[str, list[tuple[int, int, int]]] = {}
    for step, rows in enumerate(stream.rows_of_steps(range(steps))):
        for name, row, first_token in parts_of(stream, rows):
            place = (step, int(rows.row_numbers[row]), int(rows.source[row]), first_token)
            seen.setdefault(name, []).append(place)
    for name in ("train-1/5 é", "train-0/0 é", "train-2/3 é", "train-4/19 é"):
        found = [
            (reading.step, reading.row, place.source, reading.first_token)
            for place in find_document(stream, name)
            for reading in readings(stream, place, steps)
        ]
        assert sorted(found) == sorted(seen.get(name, [])), name
    with pytest.raises(UserError, match=r"No document 'nobody' in the train split of .*Ids look like 'train-0/0 é'"):
        find_document(stream, "nobody")


def test_lanes_are_those_of_the_batch_that_a_warmup_grows_to(corpora: list[Corpus]) -> None:
    warmup = Stages.of_lengths([(3, 2, 32, 8), (3, 4, 32, 8), (None, 8, 32)])
    stream = open_stream(corpora[1:2], warmup, open_shards=64)
    assert [windows.order.lanes for windows in stream.phases[0].windows] == [8]
    assert max(text_of(stream.rows_of_steps(range(40))).values()) == 1
    assert stream.settings_before(1)["stages"] == [[0, 2, 32, 8]]


def test_settings_count_up_to_the_step(corpora: list[Corpus]) -> None:
    plain = open_stream(corpora)
    other_end = Stages.of_lengths([(7, 6, 32), (9, 12, 32), (None, 5, 64)])
    assert open_stream(corpora, other_end).settings_before(27) == plain.settings_before(27)
    assert open_stream(corpora, other_end).settings_before(28) != plain.settings_before(28)
    excluding = open_stream(corpora, exclusions={"train-0/1 é": 10})
    assert excluding.settings_before(10) == plain.settings_before(10)
    assert excluding.settings_before(11) != plain.settings_before(11)
    assert open_stream(corpora, weights=[1.0, 2.0, 3.0]).settings_before(0) != plain.settings_before(0)
    assert open_stream(corpora, epochs=[1, None, None]).settings_before(0) != plain.settings_before(0)
    assert plain.settings_before(5) != plain.settings_before(8)


def test_sources_share_the_shards_kept_open(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / str(number), [[30] * 3] * 60, seed=number) for number in range(4)]
    stream = open_stream(corpora, Stages.single(32, 32), open_shards=32)
    stream.rows_of_steps(range(60))
    assert all(len(source.shard) >= 8 for source in stream.sources)
    # 32 of them and a few spare ones; each keeping as many would soon be more files than a process may open.
    assert sum(len(source.shard) for source in stream.sources) <= 64


def test_a_source_that_would_never_be_read_is_refused(corpora: list[Corpus]) -> None:
    with pytest.raises(UserError, match=r"data\.mixture: .*1 would give less than one row in 10\^12\. Raise its"):
        open_stream(corpora, weights=[1.0, 1e-15, 1.0])
    with pytest.raises(UserError, match=r"bring data\.mixture_exponent nearer to 0"):
        open_stream(corpora, exponent=1e300)
    shares = open_stream(corpora, weights=[1e308, 1e308, 1e308]).phases[0].token_shares
    np.testing.assert_allclose(shares, 1 / 3)


def test_more_open_shards_than_there_are_read_the_corpus_as_one_window(corpora: list[Corpus]) -> None:
    orders = [windows.order for windows in open_stream(corpora, open_shards=10**15).phases[0].windows]
    assert [order.window_shards for order in orders] == [3, 5, 1]
    enough = open_stream(corpora, open_shards=10**3).rows_of_steps(range(40))
    many = open_stream(corpora, open_shards=10**15).rows_of_steps(range(40))
    assert [facts(rows) for rows in many] == [facts(rows) for rows in enough]


def test_corpora_of_several_tokenizers_are_refused(corpora: list[Corpus]) -> None:
    other = replace(corpora[1].manifest, tokenizer_fingerprint="ab" * 32)
    sources = [Source(corpora[0].files, corpora[0].manifest), Source(corpora[1].files, other)]
    with pytest.raises(UserError, match=r"data\.mixture: .* has tokenizer abababababab, .* ids mean different text"):
        RowStream(sources, "train", StreamSettings("best_fit", "bert", Stages.single(4, 32), 0))


def test_exclusion_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    from pipeline.config.run import ExclusionConfig
    from pipeline.data.exclusion import read_exclusions

    listed = tmp_path / "ids.txt"
    listed.write_text("a/1\n\n b/2 \n")
    entries = [ExclusionConfig(["c"], None, 5), ExclusionConfig([], str(listed), 9), ExclusionConfig(["b/2"], None, 3)]
    assert read_exclusions(entries) == {"c": 4, "a/1": 8, "b/2": 2}
    listed.write_bytes("\ufeffa/1\r\nb\u2028/2\r\n".encode())
    assert read_exclusions([ExclusionConfig([], str(listed))]) == {"a/1": 0, "b\u2028/2": 0}
    listed.write_text(" \n")
    with pytest.raises(UserError, match=r"data\.exclude\.0\.file: .*ids\.txt names no document\. Write one id a line"):
        read_exclusions([ExclusionConfig([], str(listed))])
    listed.write_bytes(b"a/1\xff")
    with pytest.raises(UserError, match=r"ids\.txt cannot be read \('utf-8' codec .* Give a UTF-8 text file"):
        read_exclusions([ExclusionConfig([], str(listed))])
    with pytest.raises(UserError, match=r"cannot be read \(embedded null byte\)"):
        read_exclusions([ExclusionConfig([], "a\0b")])
    with pytest.raises(UserError, match=r"data\.exclude\.0\.file: .*missing\.txt cannot be read .*document id a line"):
        read_exclusions([ExclusionConfig([], str(tmp_path / "missing.txt"))])
