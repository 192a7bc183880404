"""Sentence pairs: whole sentences, lengths that no key changes, exchanges between documents only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.base.keyed import key
from pipeline.data import pairs
from pipeline.data.pieces import SECOND_PART, ShardLengths, ShardPlan, has_flag
from pipeline.data.rows import RowFormat

MODES = ("nsp", "sop", "none")


def row_format(length: int) -> RowFormat:
    return RowFormat(length, (2,), (3,), 0, end_only_at_document_end=False, middle_ids=(3,))


def random_shard(seed: int, num_documents: int, longest: int = 60, most: int = 20) -> ShardLengths:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, most, num_documents)
    sentences = generator.integers(1, longest, counts.sum()).astype(np.uint32)
    first = np.concatenate([[0], np.cumsum(counts)])
    return ShardLengths(np.add.reduceat(sentences, first[:-1]).astype(np.uint32), sentences, first)


def shards() -> list[ShardLengths]:
    shards = [random_shard(seed, 40 + seed) for seed in range(4)]
    shards += [random_shard(9, 300, longest=6, most=3), random_shard(10, 1, most=90)]
    none, one = np.zeros(0, np.uint32), np.ones(30, np.uint32)
    shards += [ShardLengths(one, one, np.arange(31)), ShardLengths(none, none, np.zeros(1, np.int64))]
    return shards


def slow_chunks(shard: ShardLengths, cap: int, with_short: bool) -> list[tuple[int, int, list[int]]]:
    """Document, offset and unit lengths of every chunk, sentence by sentence."""
    chunks = []
    most, number = pairs._most_tokens(10_000, cap) if with_short else np.full(10_000, cap), 0
    for document in range(len(shard.documents)):
        units: list[int] = []
        for sentence in shard.sentences[shard.first_sentence[document] : shard.first_sentence[document + 1]].tolist():
            units += [cap] * (sentence // cap) + [sentence % cap] * (sentence % cap > 0)
        offset, chunk, begun = 0, [], number
        for unit in units:
            if chunk and sum(chunk) + unit > most[begun]:
                chunks.append((document, offset, chunk))
                offset, chunk, begun = offset + sum(chunk), [], number
            chunk.append(unit)
            number += 1
        chunks.append((document, offset, chunk))
    return chunks


def make_plan(shard: ShardLengths, form: RowFormat, seed: int, mode: pairs.PairMode) -> ShardPlan:
    return pairs.plan(shard, form, key(seed, 1), key(seed, 2), mode)


def segments(plan: ShardPlan) -> list[list[tuple[int, int, int]]]:
    """(document, offset, length) of the parts of every segment."""
    found: list[list[tuple[int, int, int]]] = []
    second = has_flag(plan.pieces, SECOND_PART).tolist()
    for piece, is_second in zip(plan.pieces[["document", "offset", "length"]].tolist(), second, strict=True):
        if is_second:
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


def is_changed(parts: list[tuple[int, int, int]]) -> bool:
    return len(parts) == 2 and (parts[0][0] != parts[1][0] or parts[1][1] < parts[0][1])


@pytest.mark.parametrize("with_short", [False, True])
@pytest.mark.parametrize("cap", [5, 29, 125])
def test_chunks_equal_those_made_sentence_by_sentence(cap: int, with_short: bool) -> None:
    for shard in shards():
        chunks = pairs.make_chunks(shard, cap, with_short)
        units = np.diff(chunks.unit_start)
        borders = zip(chunks.first_unit[:-1], chunks.first_unit[1:], strict=True)
        found = [
            (document, offset, units[begin:end].tolist())
            for document, offset, (begin, end) in zip(
                chunks.document.tolist(), chunks.offset.tolist(), borders, strict=True
            )
        ]
        assert found == slow_chunks(shard, cap, with_short)
        assert chunks.length.tolist() == [sum(chunk) for _, _, chunk in found]


@pytest.mark.parametrize("cap", [1, 2, 29, 509])
def test_one_chunk_in_ten_is_short(cap: int) -> None:
    """Of sentences of one token, so that every length can be met; short ones are equally often of every length."""
    most = pairs._most_tokens(200_000, cap)
    short = most[most < cap]
    if cap <= 2:
        assert (most == cap).all()
        return
    assert len(short) == pytest.approx(200_000 * pairs.SHORT_SHARE * (cap - 2) / (cap - 1), rel=0.05)
    assert (short.min(), short.max()) == (2, cap - 1)
    assert short.mean() == pytest.approx((cap + 1) / 2, rel=0.03)
    ones = np.ones(40_000, np.uint32)
    lengths = pairs.make_chunks(ShardLengths(ones.sum(keepdims=True), ones, np.array([0, 40_000])), cap, True).length
    assert lengths.max() == cap
    assert (lengths < cap).mean() == pytest.approx(pairs.SHORT_SHARE, rel=0.25)


@pytest.mark.parametrize("mode", MODES)
def test_every_token_once_in_rows_that_hold_it(mode: pairs.PairMode) -> None:
    for length in (8, 32, 128):
        form = row_format(length)
        for shard in shards():
            plan = make_plan(shard, form, 5, mode)
            parts = [part for segment in segments(plan) for part in segment]
            tokens = Counter((document, offset + at) for document, offset, size in parts for at in range(size))
            assert all(count == 1 for count in tokens.values())
            expected = {(d, at) for d, size in enumerate(shard.documents.tolist()) for at in range(size)}
            assert tokens.keys() == expected
            assert plan.first_piece[-1] == len(plan.pieces)
            assert not has_flag(plan.pieces, SECOND_PART)[plan.first_piece[:-1]].any()
            for begin, end in zip(plan.first_piece[:-1], plan.first_piece[1:], strict=True):
                row = plan.pieces[begin:end]
                num_segments = (~has_flag(row, SECOND_PART)).sum()
                assert 1 <= num_segments <= pairs.max_segments(form)
                assert row["length"].sum() + num_segments * 2 + has_flag(row, SECOND_PART).sum() <= length


def test_row_count_is_the_same_for_every_key() -> None:
    for length in (16, 64):
        form = row_format(length)
        for shard in shards():
            for mode in MODES:
                found = {make_plan(shard, form, seed, mode).num_rows for seed in range(20)}
                assert found == {pairs.count_rows(shard, form, mode)}
            assert pairs.count_rows(shard, form, "nsp") == pairs.count_rows(shard, form, "sop")


@pytest.mark.parametrize("mode", MODES)
def test_sentences_stay_whole(mode: pairs.PairMode) -> None:
    form = row_format(64)
    for shard in shards()[:4]:
        borders = {
            (document, start)
            for document, offset, chunk in slow_chunks(shard, 61, mode != "none")
            for start in (offset + np.cumsum([0, *chunk])).tolist()
        }
        lone = {
            (document, offset) for document, offset, chunk in slow_chunks(shard, 61, mode != "none") if len(chunk) == 1
        }
        for parts in segments(make_plan(shard, form, 1, mode)):
            for document, offset, size in parts:
                in_a_sentence = {(document, at) for at in range(offset - 61, offset + 1)} & lone
                assert (document, offset) in borders or in_a_sentence
                assert (document, offset + size) in borders or in_a_sentence


def test_nsp_exchanges_second_parts_of_equal_length_between_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SHORT_SHARE", 0.0)  # as those that are not exchanged
    form = row_format(64)
    for seed, shard in enumerate(shards()):
        plain, mixed = (segments(make_plan(shard, form, seed, mode)) for mode in ("none", "nsp"))
        followed_by = {tuple(parts[0]): parts[1] for parts in plain if len(parts) == 2}
        assert [parts[0] for parts in plain] == [parts[0] for parts in mixed]
        for before, after in zip(plain, mixed, strict=True):
            assert len(before) == len(after)
            if len(after) == 1:
                assert before[0][2] == 1
                continue
            assert after[1][2] == before[1][2]
            assert after[1] == followed_by[after[0]] or after[1][0] != after[0][0]
        assert sorted(parts[-1] for parts in mixed) == sorted(parts[-1] for parts in plain)


def test_sop_swaps_the_parts_of_about_half_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SHORT_SHARE", 0.0)  # as those that are not swapped
    shard, form = random_shard(3, 2000), row_format(64)
    plain, swapped = (segments(make_plan(shard, form, 3, mode)) for mode in ("none", "sop"))
    for before, after in zip(plain, swapped, strict=True):
        assert after in (before, before[::-1])
    share = np.mean([is_changed(parts) for parts in swapped if len(parts) == 2])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(swapped))


@pytest.mark.parametrize(("num_documents", "least"), [(5000, 0.49), (400, 0.40)])
def test_half_of_the_second_parts_are_of_another_document(num_documents: int, least: float) -> None:
    shard, form = random_shard(7, num_documents, most=40), row_format(128)
    shares = [
        np.mean([is_changed(parts) for parts in segments(make_plan(shard, form, seed, "nsp")) if len(parts) == 2])
        for seed in range(3)
    ]
    assert least < np.mean(shares) < 0.51


def test_one_document_has_no_other_to_exchange_with() -> None:
    plan = make_plan(random_shard(10, 1, most=90), row_format(32), 0, "nsp")
    assert not any(is_changed(parts) for parts in segments(plan))


def test_split_points_are_drawn_evenly_from_the_borders_and_move_with_the_key() -> None:
    sentences = np.array([5, 7, 11, 13], np.uint32)
    shard = ShardLengths(sentences.sum(keepdims=True), sentences, np.array([0, 4]))
    chunks = pairs.make_chunks(shard, 61, False)
    found = Counter(int(pairs.first_parts(chunks, key(seed, 0))[0]) for seed in range(3000))
    assert found.keys() == {5, 12, 23}
    assert sum((count - 1000) ** 2 / 1000 for count in found.values()) < 13.8  # chi-squared, 2 df, p = 0.001


def test_a_lone_sentence_is_split_at_any_of_its_tokens() -> None:
    one = np.array([6], np.uint32)
    chunks = pairs.make_chunks(ShardLengths(one, one, np.array([0, 1])), 61, False)
    assert {int(pairs.first_parts(chunks, key(seed, 0))[0]) for seed in range(200)} == {1, 2, 3, 4, 5}


def test_every_exchange_is_one_of_whole_cycles() -> None:
    generator = np.random.default_rng(0)
    lone_of_three = 0
    for seed in range(300):
        num_chunks = int(generator.integers(1, 40))
        second = generator.integers(0, 4, num_chunks)
        document = np.sort(generator.integers(0, 10, num_chunks))
        taken_from = pairs.exchange(second, document, seed)
        assert sorted(taken_from.tolist()) == list(range(num_chunks))
        np.testing.assert_array_equal(second[taken_from], second)
        moved = taken_from != np.arange(num_chunks)
        assert (document[taken_from] != document)[moved].all()
        assert not moved[second == 0].any()
        twice, thrice = taken_from[taken_from], taken_from[taken_from[taken_from]]
        assert ((twice == np.arange(num_chunks)) | (thrice == np.arange(num_chunks))).all()
        lone_of_three += int((twice != np.arange(num_chunks)).sum())
    assert lone_of_three > 0


def test_pairs_without_sentences_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="pairs need the sentences of the shard"):
        pairs.make_chunks(ShardLengths(np.ones(3, np.uint32)), 61, False)
