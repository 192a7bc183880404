"""Gathering against a plain reference, document by document and slot by slot."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import pytest

from pipeline.base.keyed import key
from pipeline.base.memory_kernels import address_of
from pipeline.data import pairs
from pipeline.data.gather import FILLER, filler_rows, gather_rows, join_rows, split_rows
from pipeline.data.packing import PACKINGS
from pipeline.data.pieces import (
    ENDS_DOCUMENT,
    PIECE,
    SECOND_PART,
    ShardLengths,
    has_flag,
    is_kept,
)
from pipeline.data.rows import NO_PAIR, PER_ROW, PER_SEGMENT, RowFormat, Rows
from pipeline.shards.layout import pack_bits

LENGTH = 32
BERT = RowFormat(LENGTH, (2,), (3,), 0, end_only_at_document_end=False)
GPT = RowFormat(LENGTH, (), (5,), 5, end_only_at_document_end=True)
PAIRS = RowFormat(LENGTH, (2,), (3,), 0, end_only_at_document_end=False, middle_ids=(4,))
CASES = [
    *((packing, form) for packing in ("best_fit", "concatenate", "one_document") for form in (BERT, GPT)),
    *((packing, PAIRS) for packing in pairs.MODES),
]


@dataclass
class FakeShard:
    """Documents on a flat array, with other bytes before every block as in a tar."""

    documents: list[np.ndarray]
    words: list[np.ndarray]
    lengths: ShardLengths
    flat: np.ndarray
    flat_words: np.ndarray
    starts: np.ndarray
    first_documents: np.ndarray
    loaded: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first_items = self.starts[self.first_documents]
        self.word_addresses = np.zeros(len(self.first_items), np.uint64)

    def load_words(self, block: int) -> None:
        assert block not in self.loaded
        end = [*self.first_items, len(self.flat)][block + 1]
        self.loaded[block] = pack_bits(self.flat_words[self.first_items[block] : end])
        self.word_addresses[block] = address_of(self.loaded[block])


def make_shard(seed: int, num_documents: int = 40, dtype: type = np.uint16) -> FakeShard:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 6, num_documents)
    sentences = generator.integers(1, 20, counts.sum())
    first = np.concatenate([[0], np.cumsum(counts)])
    lengths = np.add.reduceat(sentences, first[:-1])
    documents = [generator.integers(10, 60000, length).astype(dtype) for length in lengths]
    words = [generator.random(length) < 0.6 for length in lengths]
    first_documents = np.arange(0, num_documents, 7)
    flat, flat_words, starts, end = [], [], [], 0
    for number in range(num_documents):
        if number in first_documents:
            flat.append(np.full(13, 9, dtype))
            flat_words.append(np.ones(13, np.bool_))
            end += 13
        starts.append(end)
        flat.append(documents[number])
        flat_words.append(words[number])
        end += len(documents[number])
    return FakeShard(
        documents,
        words,
        ShardLengths(lengths, sentences, first),
        np.concatenate(flat),
        np.concatenate(flat_words),
        np.array(starts),
        first_documents,
    )


def plan_rows(shard: FakeShard, packing: str, form: RowFormat, seed: int) -> list[np.ndarray]:
    """Located pieces of every row of the shard."""
    plan = PACKINGS[packing].plan(shard.lengths, form, key(seed, 1), key(seed, 2))
    plan.pieces["item"] = shard.starts[plan.pieces["document"]] + plan.pieces["offset"]
    return [plan.pieces[begin:end] for begin, end in zip(plan.first_piece[:-1], plan.first_piece[1:], strict=True)]


def gather(shards: list[FakeShard], number: np.ndarray, rows: list[np.ndarray], form: RowFormat, words=False) -> Rows:
    return gather_rows(
        np.concatenate([np.zeros(0, PIECE), *rows]),
        np.array([len(pieces) for pieces in rows], np.int64),
        [shard.flat for shard in shards],
        number,
        row_numbers=np.arange(len(rows)) + 7,
        epoch=np.zeros(len(rows), np.int64),
        shard=number,
        source=np.zeros(len(rows), np.int64),
        first_document=100 * number,
        row_format=form,
        words=shards if words else None,
    )


def slow_row(shard: FakeShard, pieces: np.ndarray, form: RowFormat) -> tuple[list[int], list[bool], list[tuple]]:
    """Tokens, word starts and (start, end, document, offset) of every segment of a row, piece by piece."""
    tokens: list[int] = []
    words: list[bool] = []
    segments: list[tuple[int, int, int, int]] = []
    seconds = [*has_flag(pieces, SECOND_PART).tolist(), False]
    for place, piece in enumerate(pieces):
        document, offset, length = int(piece["document"]), int(piece["offset"]), int(piece["length"])
        text = shard.documents[document][offset : offset + length].tolist()
        begins = shard.words[document][offset : offset + length].tolist()
        ends = offset + length == len(shard.documents[document])
        before = form.middle_ids if seconds[place] else form.begin_ids
        after = () if seconds[place + 1] or (form.end_only_at_document_end and not ends) else form.end_ids
        if not seconds[place]:
            segments.append((len(tokens), 0, document, offset))
        tokens += [*before, *text, *after]
        words += [True] * len(before) + [True, *begins[1:]] + [True] * len(after)
        start, _, *origin = segments[-1]
        segments[-1] = (start, min(len(tokens), form.sequence_length), *origin)
    padding = form.sequence_length - len(tokens)
    filled = slice(0, form.sequence_length)
    return [*tokens, *[form.pad_id] * padding][filled], [*words, *[False] * padding][filled], segments


@pytest.mark.parametrize(("packing", "form"), CASES)
def test_rows_equal_those_made_document_by_document(packing: str, form: RowFormat) -> None:
    generator = np.random.default_rng(0)
    shards = [make_shard(seed) for seed in range(3)]
    planned = [(number, row) for number, shard in enumerate(shards) for row in plan_rows(shard, packing, form, 4)]
    order = generator.permutation(len(planned))
    number = np.array([planned[at][0] for at in order])
    pieces = [planned[at][1] for at in order]
    for row in range(0, len(pieces), 5):  # rows that lost documents, or all they had
        excluded = generator.random(40) < generator.choice([0.3, 1.0])
        pieces[row] = pieces[row][is_kept(pieces[row], excluded)]
    rows = gather(shards, number, pieces, form, words=True)
    assert rows.tokens.dtype == np.uint16
    assert rows.word_starts is not None
    columns = (rows.segment_start, rows.segment_start + rows.segment_length, rows.document, rows.offset)
    for row, own in enumerate(pieces):
        tokens, words, segments = slow_row(shards[number[row]], own, form)
        assert rows.tokens[row].tolist() == tokens
        assert rows.word_starts[row].tolist() == words
        found = list(zip(*(column[rows.segment_row == row].tolist() for column in columns), strict=True))
        assert found == [(start, end, 100 * number[row] + document, at) for start, end, document, at in segments]


@pytest.mark.parametrize("packing", sorted(pairs.MODES))
def test_pairs_name_both_parts(packing: str) -> None:
    shard = make_shard(1)
    pieces = plan_rows(shard, packing, PAIRS, 2)
    number = np.zeros(len(pieces), np.int64)
    rows = gather([shard], number + 0, pieces, PAIRS)
    labels = []
    for segment, row in enumerate(rows.segment_row.tolist()):
        start, second = int(rows.segment_start[segment]), int(rows.second_start[segment])
        end = start + int(rows.segment_length[segment])
        first_text = shard.documents[rows.document[segment]][rows.offset[segment] :]
        if rows.pair_label[segment] == NO_PAIR:
            assert second == end
            assert rows.second_document[segment] == rows.second_offset[segment] == -1
            continue
        np.testing.assert_array_equal(rows.tokens[row, start + 1 : second - 1], first_text[: second - start - 2])
        assert rows.tokens[row, [start, second - 1, end - 1]].tolist() == [2, 4, 3]
        second_text = shard.documents[rows.second_document[segment]][rows.second_offset[segment] :]
        np.testing.assert_array_equal(rows.tokens[row, second : end - 1], second_text[: end - 1 - second])
        follows = rows.second_document[segment] == rows.document[segment] and (
            rows.second_offset[segment] == rows.offset[segment] + second - start - 2
        )
        assert rows.pair_label[segment] == (not follows)
        labels.append(int(rows.pair_label[segment]))
    assert set(labels) == ({0} if packing == "pairs" else {0, 1})


def test_pieces_know_where_documents_end_and_second_parts_begin() -> None:
    shard = make_shard(2)
    for packing, form in CASES:
        rows = plan_rows(shard, packing, form, 1)
        pieces = np.concatenate(rows)
        ends = pieces["offset"] + pieces["length"] == shard.lengths.documents[pieces["document"]]
        np.testing.assert_array_equal(has_flag(pieces, ENDS_DOCUMENT), ends)
        assert has_flag(pieces, SECOND_PART).any() == (form is PAIRS)


def test_a_pair_with_an_excluded_part_goes_whole() -> None:
    pieces = np.zeros(5, PIECE)
    pieces["document"] = [0, 1, 2, 3, 4]
    pieces["flags"][[1, 3]] = SECOND_PART
    for document, kept in ((0, [2, 3, 4]), (1, [2, 3, 4]), (3, [0, 1, 4]), (4, [0, 1, 2, 3])):
        assert np.flatnonzero(is_kept(pieces, np.arange(5) == document)).tolist() == kept


def test_no_rows_and_rows_without_pieces() -> None:
    shard = make_shard(0)
    assert gather([shard], np.zeros(0, np.int64), [], BERT).tokens.shape == (0, LENGTH)
    rows = gather([shard], np.zeros(3, np.int64), [np.zeros(0, PIECE)] * 3, PAIRS, words=True)
    assert (rows.tokens == PAIRS.pad_id).all()
    assert not rows.word_starts.any()
    assert len(rows.segment_row) == len(rows.pair_label) == 0


def test_shards_of_different_token_types_do_not_mix() -> None:
    shards = [make_shard(0), make_shard(1, dtype=np.uint32)]
    pieces = [plan_rows(shard, "best_fit", BERT, 0)[0] for shard in shards]
    assert gather(shards[1:], np.zeros(1, np.int64), pieces[1:], BERT).tokens.dtype == np.uint32
    with pytest.raises(ValueError, match=r"different token types: \['uint16', 'uint32'\]"):
        gather(shards, np.arange(2), pieces, BERT)


@pytest.mark.parametrize("change", [("item", 10**6), ("length", LENGTH), ("length", 60000)])
def test_pieces_that_cannot_be_are_refused(change: tuple[str, int]) -> None:
    """A wrong plan must not read beyond a map or write beyond a row."""
    shard = make_shard(0)
    pieces = plan_rows(shard, "best_fit", BERT, 0)[:4]
    pieces[2][change[0]][0] = change[1]
    with pytest.raises(ValueError, match="the pieces of row 2 of these outgrow it, or lie outside their shard"):
        gather([shard], np.zeros(4, np.int64), pieces, BERT)


def assert_same_rows(found: Rows, expected: Rows) -> None:
    for column in fields(Rows):
        one, other = getattr(found, column.name), getattr(expected, column.name)
        assert (one is None) == (other is None), column.name
        if one is not None:
            np.testing.assert_array_equal(one, other, err_msg=column.name)
            assert one.dtype == other.dtype


@pytest.mark.parametrize(("packing", "form"), [("best_fit", BERT), ("pairs_nsp", PAIRS)])
def test_rows_are_cut_and_joined_field_by_field(packing: str, form: RowFormat) -> None:
    shard = make_shard(3)
    pieces = plan_rows(shard, packing, form, 1)[:12]
    pieces[4] = pieces[4][:0]
    for words in (False, True):
        whole = gather([shard], np.zeros(12, np.int64), pieces, form, words)
        parts = split_rows(whole, [5, 0, 3, 4])
        assert [len(part.tokens) for part in parts] == [5, 0, 3, 4]
        alone = gather([shard], np.zeros(4, np.int64), pieces[8:], form, words)
        assert_same_rows(parts[3], Rows(**{**vars(alone), "row_numbers": whole.row_numbers[8:]}))
        assert_same_rows(join_rows(parts), whole)


def test_filler_rows_can_stand_beside_others() -> None:
    shard = make_shard(3)
    rows = gather([shard], np.zeros(9, np.int64), plan_rows(shard, "pairs_nsp", PAIRS, 1)[:9], PAIRS, words=True)
    filler = filler_rows(2, PAIRS, like=rows)
    assert filler.row_numbers.tolist() == [FILLER, FILLER]
    assert (filler.tokens == PAIRS.pad_id).all()
    assert not filler.word_starts.any()
    joined = join_rows([rows, filler])
    assert_same_rows(split_rows(joined, [9, 2])[0], rows)
    assert_same_rows(split_rows(joined, [9, 2])[1], filler)


def test_every_field_is_a_row_s_or_a_segment_s() -> None:
    assert {*PER_ROW, *PER_SEGMENT, "segment_row"} == {column.name for column in fields(Rows)}
