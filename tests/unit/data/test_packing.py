"""Plans of shards: every token once, row counts that no key changes, bounds. Pairs have tests of their own."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.config.run import Packing
from pipeline.data.concatenate import payload
from pipeline.data.gather import gather_rows
from pipeline.data.packing import PACKINGS, find_packing, max_segments_per_row
from pipeline.data.pieces import ENDS_DOCUMENT, ShardLengths, ShardPlan, has_flag
from pipeline.data.rows import RowFormat, Rows
from tests.corpora import random_lengths

BERT = {"begin_ids": (2,), "end_ids": (3,), "pad_id": 0, "end_only_at_document_end": False}
GPT = {"begin_ids": (), "end_ids": (5,), "pad_id": 5, "end_only_at_document_end": True}
KINDS = {"bert": BERT, "gpt": GPT}
OF_DOCUMENTS = sorted(name for name, packing in PACKINGS.items() if not packing.needs_sentences)


def row_format(kind: str, length: int) -> RowFormat:
    return RowFormat(sequence_length=length, **KINDS[kind])


def make_plan(packing: str, lengths: np.ndarray, form: RowFormat, seed: int) -> ShardPlan:
    return PACKINGS[packing].plan(ShardLengths(lengths), form, key(seed, 1), key(seed, 2))


def gathered(plan: ShardPlan, lengths: np.ndarray, form: RowFormat) -> Rows:
    """The rows of a plan, from a shard of nothing but documents."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    plan.pieces["item"] = starts[plan.pieces["document"]] + plan.pieces["offset"]
    zeros = np.zeros(plan.num_rows, np.int64)
    return gather_rows(
        plan.pieces,
        np.diff(plan.first_piece),
        [np.zeros(int(lengths.sum()), np.uint16)],
        zeros,
        row_numbers=np.arange(plan.num_rows),
        epoch=zeros,
        shard=zeros,
        source=zeros,
        first_document=zeros,
        row_format=form,
    )


def length_sets() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    sets = [np.array(lengths, np.uint32) for lengths in random_lengths(0, 3, 200, 60.0)]
    sets += [generator.integers(1, 12, 300).astype(np.uint32), np.ones(100, np.uint32), np.full(9, 500, np.uint32)]
    sets += [np.array([1], np.uint32), np.array([30, 31, 32, 33, 62, 64, 63, 61], np.uint32), np.zeros(0, np.uint32)]
    return sets


@pytest.mark.parametrize("length", [8, 32, 128])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("packing", OF_DOCUMENTS)
def test_every_token_once_in_rows_that_hold_it(packing: str, kind: str, length: int) -> None:
    form = row_format(kind, length)
    for seed, lengths in enumerate(length_sets()):
        plan = make_plan(packing, lengths, form, seed)
        pieces = plan.pieces
        assert plan.num_rows == PACKINGS[packing].count_rows(ShardLengths(lengths), form)
        assert plan.first_piece[-1] == len(pieces)
        if not len(lengths):
            assert plan.num_rows == 0
            continue
        counts = np.diff(plan.first_piece)
        assert counts.min() >= 1
        assert counts.max() <= max_segments_per_row(form, packing)
        tokens = [
            (document, token)
            for document, offset, size in zip(pieces["document"], pieces["offset"], pieces["length"], strict=True)
            for token in range(offset, offset + size)
        ]
        assert len(tokens) == len(set(tokens)) == lengths.sum()
        assert max(token + 1 for document, token in tokens if document == 0) == lengths[0]
        ends = pieces["offset"] + pieces["length"] == lengths[pieces["document"]]
        np.testing.assert_array_equal(ends, has_flag(pieces, ENDS_DOCUMENT))
        rows = gathered(plan, lengths, form)
        end = rows.segment_start + rows.segment_length
        assert end.max() <= length
        np.testing.assert_array_equal(np.bincount(rows.segment_row), counts)
        first = plan.first_piece[:-1]
        assert (rows.segment_start[first] == 0).all()
        inside = np.setdiff1d(np.arange(len(pieces)), first)
        np.testing.assert_array_equal(rows.segment_start[inside], end[inside - 1])


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize("packing", OF_DOCUMENTS)
def test_row_count_is_the_same_for_every_key(packing: str, kind: str) -> None:
    form = row_format(kind, 64)
    for lengths in length_sets():
        expected = PACKINGS[packing].count_rows(ShardLengths(lengths), form)
        assert {make_plan(packing, lengths, form, seed).num_rows for seed in range(20)} == {expected}


@pytest.mark.parametrize("packing", ["best_fit", "one_document"])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_no_document_that_fits_is_split(kind: str, packing: str) -> None:
    form = row_format(kind, 64)
    cap = 64 - form.overhead
    for lengths in length_sets():
        pieces = make_plan(packing, lengths, form, 3).pieces
        number = np.bincount(pieces["document"], minlength=len(lengths))
        np.testing.assert_array_equal(number, -(-lengths.astype(np.int64) // cap))


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_one_document_a_row_with_the_cuts_of_best_fit(kind: str) -> None:
    form = row_format(kind, 64)
    for lengths in length_sets():
        plan = make_plan("one_document", lengths, form, 3)
        assert plan.first_piece.tolist() == list(range(len(plan.pieces) + 1))
        other = make_plan("best_fit", lengths, form, 3)
        assert sorted(plan.pieces.tolist()) == sorted(other.pieces.tolist())


@pytest.mark.parametrize("mean", [600, 127])
def test_best_fit_fills_rows_of_natural_lengths(mean: int) -> None:
    form = row_format("bert", 512)
    generator = np.random.default_rng(mean)
    lengths = np.maximum(1, generator.lognormal(np.log(mean) - 0.5, 1.0, 10_000)).astype(np.uint32)
    plan = make_plan("best_fit", lengths, form, 0)
    slots = int(lengths.sum()) + form.overhead * len(plan.pieces)
    assert slots >= 0.999 * 512 * plan.num_rows


def test_best_fit_moves_cuts_and_neighbours_with_the_key() -> None:
    form = row_format("bert", 34)
    lengths = np.array([100] * 40 + [10] * 60, np.uint32)
    plans = [make_plan("best_fit", lengths, form, seed) for seed in range(2)]
    cuts = [{(p["document"], p["offset"]) for p in plan.pieces if p["document"] < 40} for plan in plans]
    assert cuts[0] != cuts[1]
    # A remainder of 4 tokens stands before one of 3 full pieces of 32, or after them: all four occur.
    remainders = plans[0].pieces[(plans[0].pieces["length"] == 4) & (plans[0].pieces["document"] < 40)]
    assert set(remainders["offset"].tolist()) == {0, 32, 64, 96}
    together = [
        {
            tuple(sorted(plan.pieces["document"][begin:end].tolist()))
            for begin, end in zip(plan.first_piece[:-1], plan.first_piece[1:], strict=True)
        }
        for plan in plans
    ]
    assert together[0] != together[1]


def test_best_fit_assigns_every_document_to_every_slot_of_its_size_equally() -> None:
    form = row_format("gpt", 32)
    lengths = np.array([20] * 6 + [11] * 3 + [5] * 3, np.uint32)
    rows = np.zeros(make_plan("best_fit", lengths, form, 0).num_rows)
    for seed in range(3000):
        plan = make_plan("best_fit", lengths, form, seed)
        rows[np.searchsorted(plan.first_piece, np.flatnonzero(plan.pieces["document"] == 0)[0], side="right") - 1] += 1
    used = rows[rows > 0]
    assert len(used) == 6
    assert ((used - 500) ** 2 / 500).sum() < 20.5  # chi-squared, 5 degrees of freedom, p = 0.001


def slow_concatenation(lengths: np.ndarray, order: list[int], form: RowFormat) -> list[list[tuple[int, int, int]]]:
    """Slot by slot: the stream of documents and separators, cut every P slots; (document, offset, length) by row."""
    stream: list[tuple[int, int] | None] = []
    for document in order:
        stream += [(document, token) for token in range(lengths[document])] + [None] * form.overhead
    while stream and stream[-1] is None:
        stream.pop()
    size = payload(form)
    rows = []
    for first in range(0, len(stream), size):
        row: list[list[int]] = []
        for slot in stream[first : first + size]:
            if slot is None:
                continue
            document, token = slot
            if row and row[-1][0] == document:
                row[-1][2] += 1
            else:
                row.append([document, token, 1])
        rows.append([(document, offset, length) for document, offset, length in row])
    return rows


@pytest.mark.parametrize("length", [8, 32, 128])
@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_concatenation_equals_the_stream_cut_slot_by_slot(kind: str, length: int) -> None:
    form = row_format(kind, length)
    for seed, lengths in enumerate(length_sets()):
        plan = make_plan("concatenate", lengths, form, seed)
        order = list(dict.fromkeys(plan.pieces["document"].tolist()))
        assert sorted(order) == list(range(len(lengths)))
        found = [
            [(int(p["document"]), int(p["offset"]), int(p["length"])) for p in plan.pieces[begin:end]]
            for begin, end in zip(plan.first_piece[:-1], plan.first_piece[1:], strict=True)
        ]
        assert found == slow_concatenation(lengths, order, form)


def test_concatenation_bound_is_met_by_tiny_documents() -> None:
    for kind, length, bound in (("bert", 32, 10), ("gpt", 32, 16), ("gpt", 33, 17)):
        form = row_format(kind, length)
        plan = make_plan("concatenate", np.ones(500, np.uint32), form, 0)
        assert np.diff(plan.first_piece).max() == bound == max_segments_per_row(form, "concatenate")


def test_the_config_names_every_packing() -> None:
    assert get_args(Packing) == tuple(PACKINGS)


def test_unknown_packing_lists_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"data\.packing is 'first_fit'; it must be one of best_fit, concatenate"):
        find_packing("first_fit")
