"""Masks that stay with the tokens of documents, whatever row these land in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.config.run import ObjectiveConfig, ObjectiveName, Packing
from pipeline.data.row_format import row_format
from pipeline.data.rows import Rows
from pipeline.data.stream import RowStream, open_stream
from pipeline.objectives.masking import masking_settings
from pipeline.objectives.objective import Objective
from pipeline.objectives.predictions import KEPT
from pipeline.objectives.registry import make_objective
from pipeline.objectives.static_masking import corrupt_documents, most_static_predictions
from tests.corpora import Corpus, random_lengths, write_corpus
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, VOCAB_SIZE
from tests.unit.objectives.slow_masking import MASK_ID, TOKEN_ORDER, slow_hash

LENGTH, SEED, VOCABULARY = 64, 3, 200
CASES: list[tuple[ObjectiveName, Packing]] = [
    ("mlm", "best_fit"),
    ("mlm", "concatenate"),
    ("rtd", "one_document"),
    ("mlm+nsp", "pairs_nsp"),
    ("mlm+sop", "pairs_sop"),
]
Seen = dict[tuple[int, int], tuple[int, int]]
"""What was read and what was to be predicted, by document and token in it."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    lengths = random_lengths(0, 3, 30, mean=60.0)
    return write_corpus(tmp_path_factory.mktemp("static") / "corpus", lengths, vocab_size=VOCABULARY, words=True)


def stream_of(corpus: Corpus, packing: Packing, words: bool = False) -> RowStream:
    return open_stream(
        corpus.files, kind="bert", sequence_length=LENGTH, global_batch_size=8, packing=packing, seed=1, words=words
    )


def objective_of(corpus: Corpus, packing: Packing, cross: bool = False, **changes: Any) -> Objective:
    form = row_format(corpus.manifest, "bert", LENGTH)
    config = ObjectiveConfig(**changes)
    return make_objective(config, corpus.manifest, form, SEED, packing=packing, cross_document_attention=cross)


def seen_in(rows: Rows, input_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> Seen:
    """By document and token, found without the code under test: each segment is walked from its first text token."""
    found: Seen = {}
    columns = (rows.segment_row, rows.segment_start, rows.segment_length, rows.document, rows.offset)
    for number, (row, start, length, document, offset) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        parts = [(start + 1, start + length - 1, document, offset)]
        if rows.second_start is not None and rows.second_document is not None and rows.second_offset is not None:
            second = int(rows.second_start[number])
            if second < start + length:
                own = (int(rows.second_document[number]), int(rows.second_offset[number]))
                parts = [(start + 1, second - 1, document, offset), (second, start + length - 1, *own)]
        for first, end, of, begin in parts:
            for slot in range(first, end):
                assert (of, begin + slot - first) not in found
                found[of, begin + slot - first] = (int(input_ids[row, slot]), int(labels[row, slot]))
    return found


def epoch_of(stream: RowStream, objective: Objective, epoch: int) -> Seen:
    numbers = np.arange(epoch * stream.num_rows, (epoch + 1) * stream.num_rows)
    rows = stream.rows_numbered(numbers)
    assert (rows.epoch == epoch).all()
    return seen_in(rows, *objective.labels_of(rows))


@pytest.mark.parametrize(("name", "packing"), CASES)
def test_a_document_keeps_its_masks_whatever_rows_it_lands_in(
    corpus: Corpus, name: ObjectiveName, packing: Packing
) -> None:
    stream, objective = stream_of(corpus, packing), objective_of(corpus, packing, name=name, mask_copies=1)
    first, second, third = (epoch_of(stream, objective, epoch) for epoch in range(3))
    orders = [stream.rows_numbered(np.arange(epoch * stream.num_rows, (epoch + 1) * stream.num_rows)).document
              for epoch in (0, 1)]  # fmt: skip
    assert not np.array_equal(*orders)
    assert first == second == third
    predicted = sum(label != KEPT for _, label in first.values())
    assert abs(predicted / len(first) - 0.15) < 5 * math.sqrt(0.15 * 0.85 / len(first))
    if packing != "concatenate":
        assert len(first) == int(corpus.manifest.splits["train"].tokens.sum())


def test_copies_come_back_in_turn(corpus: Corpus) -> None:
    stream, objective = stream_of(corpus, "best_fit"), objective_of(corpus, "best_fit", mask_copies=2)
    first, second, third = (epoch_of(stream, objective, epoch) for epoch in range(3))
    assert first == third
    both = sum(first[name][1] != KEPT and second[name][1] != KEPT for name in first)
    assert abs(both - len(first) * 0.15**2) < 5 * math.sqrt(len(first) * 0.15**2)
    one = objective_of(corpus, "best_fit", mask_copies=1)
    assert epoch_of(stream, one, 0) == first  # the copy of epoch 0 is the same
    dynamic = epoch_of(stream, objective_of(corpus, "best_fit"), 0)
    assert dynamic != first


def test_documents_that_see_each_other_have_the_same_masks(corpus: Corpus) -> None:
    rows = stream_of(corpus, "best_fit").rows(0)
    apart, joined = (objective_of(corpus, "best_fit", cross, mask_copies=1) for cross in (False, True))
    for ours, other in zip(apart.labels_of(rows), joined.labels_of(rows), strict=True):
        np.testing.assert_array_equal(ours, other)
    assert np.array_equal(apart.prepare(rows, 1)[0].labels, joined.prepare(rows, 1)[0].labels)


@pytest.mark.parametrize("name", ["mlm", "rtd"])
def test_rows_are_masked_alike_in_any_batch(corpus: Corpus, name: ObjectiveName) -> None:
    stream, objective = stream_of(corpus, "best_fit"), objective_of(corpus, "best_fit", name=name, mask_copies=3)
    whole = stream.rows(0)
    together = objective.labels_of(whole)
    for world_size in (2, 8):
        shares = [objective.labels_of(stream.rows(0, rank, world_size)) for rank in range(world_size)]
        for number in range(2):
            np.testing.assert_array_equal(np.concatenate([share[number] for share in shares]), together[number])
    for num_micro_batches in (1, 4):
        batches = objective.prepare(whole, num_micro_batches)
        labels = np.concatenate([_dense_labels(batch) for batch in batches])
        np.testing.assert_array_equal(labels, together[1])
        assert sum(batch.num_predictions for batch in batches) == int((together[1] != KEPT).sum())


def _dense_labels(batch: Any) -> NDArray[np.int64]:
    labels = np.full(batch.input_ids.numel(), KEPT)
    labels[batch.prediction_positions.numpy()] = batch.labels.numpy()
    return labels.reshape(batch.input_ids.shape)


def test_whole_words_are_masked_by_their_first_token(corpus: Corpus) -> None:
    """Of documents that no row cuts: a cut makes two words of one."""
    stream = stream_of(corpus, "best_fit", words=True)
    objective = objective_of(corpus, "best_fit", mask_copies=1, masking="whole_word", mask_rate=0.2)
    first, second = (epoch_of(stream, objective, epoch) for epoch in range(2))
    documents = [document for shard in corpus.documents["train"] for document in shard]
    drawn, tokens, predicted = 0, 0, 0
    for number, document in enumerate(documents):
        if len(document.tokens) > LENGTH - 2:
            continue
        assert document.words is not None
        chosen = [first[number, token][1] != KEPT for token in range(len(document.tokens))]
        assert chosen == [second[number, token][1] != KEPT for token in range(len(document.tokens))]
        begins = np.flatnonzero(document.words).tolist()
        for begin, end in zip(begins, [*begins[1:], len(chosen)], strict=True):
            assert len(set(chosen[begin:end])) == 1
            drawn += 1
            predicted += chosen[begin]
        tokens += len(chosen)
    assert drawn < tokens
    assert abs(predicted / drawn - 0.2) < 5 * math.sqrt(0.2 * 0.8 / drawn)


def test_words_are_asked_for_where_there_are_none(corpus: Corpus) -> None:
    objective = objective_of(corpus, "best_fit", mask_copies=1, masking="whole_word")
    with pytest.raises(UserError, match="`whole_word` needs to know where words begin"):
        objective.labels_of(stream_of(corpus, "best_fit").rows(0))


def long_documents(num_rows: int = 2048, length: int = 512, epoch: int = 0) -> Rows:
    """A document a row, of text alone, without special tokens."""
    number = np.arange(num_rows)
    zero = np.zeros(num_rows, np.int32)
    return Rows(
        tokens=np.full((num_rows, length), 9, np.uint16),
        row_numbers=number,
        segment_row=number.astype(np.int32),
        segment_start=zero,
        segment_length=np.full(num_rows, length, np.int32),
        document=number,
        offset=np.zeros(num_rows, np.int64),
        epoch=np.full(num_rows, epoch),
        shard=zero,
        source=zero,
    )


def masked(rows: Rows, seed: int = 7, **changes: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    config = ObjectiveConfig(**{"mask_copies": 10, **changes})
    settings = masking_settings(config, seed=seed, mask_id=MASK_ID, vocab_size=VOCAB_SIZE, special_ids=ALL_SPECIAL_IDS)
    made = corrupt_documents(rows, 0, settings)
    return made.input_ids, made.dense_labels() != KEPT, made.counts


def assert_chi_square(observed: NDArray[np.number], expected: NDArray[np.floating] | float, degrees: int) -> None:
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees), (statistic, degrees)


def test_shares_on_a_million_tokens() -> None:
    """Places in a document, documents, and what becomes of the predicted."""
    rows = long_documents()
    input_ids, chosen, counts = masked(rows)
    by_place, by_document = chosen.sum(0), chosen.sum(1)
    assert np.array_equal(by_document, counts)
    for observed, trials in ((by_place, 2048), (by_document, 512)):
        expected = trials * 0.15
        assert_chi_square((observed - expected) / math.sqrt(0.85) + expected, expected, len(observed))
    now = input_ids[chosen]
    shares = np.array([0.8, 0.1 + 0.1 / 194, 0.1 * 193 / 194])
    replaced = now[(now != MASK_ID) & (now != 9)]
    assert_chi_square(np.array([(now == MASK_ID).sum(), (now == 9).sum(), len(replaced)]), shares * len(now), 2)
    ids, times = np.unique(replaced, return_counts=True)
    assert len(ids) == 193
    assert_chi_square(times, len(replaced) / 193, 192)


def test_copies_seeds_and_neighbours_are_independent() -> None:
    _, chosen, _ = masked(long_documents())
    others = {
        "copy": masked(long_documents(epoch=1))[1],
        "seed": masked(long_documents(), seed=8)[1],
        "next token": np.roll(chosen, 1, axis=1),
        "next document": np.roll(chosen, 1, axis=0),
    }
    for name, other in others.items():
        together = int((chosen & other).sum())
        assert abs(together - chosen.size * 0.15**2) < 5 * math.sqrt(chosen.size * 0.15**2), name
    assert np.array_equal(masked(long_documents(epoch=10))[1], chosen)


def test_the_draw_is_the_one_that_the_page_defines() -> None:
    rows = long_documents(3, 40, epoch=7)
    rows = replace(rows, document=np.array([5, 2**31, 0]), offset=np.array([100, 0, 2**31]))
    input_ids, chosen, _ = masked(rows, mask_copies=4)
    draw_key = slow_hash(key(7, TOKEN_ORDER), 7 % 4)
    for row, (document, offset) in enumerate(zip(rows.document.tolist(), rows.offset.tolist(), strict=True)):
        draws = [slow_hash(draw_key, 2**32 * document + offset + place) for place in range(40)]
        assert chosen[row].tolist() == [draw >> 32 < 0.15 * 2**32 for draw in draws]
        for place in np.flatnonzero(chosen[row]).tolist():
            assert (input_ids[row, place] == MASK_ID) == ((draws[place] & 0xFFFF) < 0.8 * 2**16)


@pytest.mark.parametrize("masking", ["token", "whole_word"])
def test_what_exceeds_the_places_of_a_row_is_left_out_at_its_end(masking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that rows do exceed: words of two tokens are left out whole."""
    words = np.tile([True, False], (2048, 256))
    rows = replace(long_documents(), word_starts=words)
    _, everything, counts = masked(rows, masking=masking)
    assert counts.max() <= most_static_predictions(512, ObjectiveConfig(masking=masking))  # type: ignore[arg-type]
    monkeypatch.setattr("pipeline.objectives.static_masking.most_static_predictions", lambda *_: 75)
    input_ids, chosen, counts = masked(rows, masking=masking)
    assert counts.max() == (75 if masking == "token" else 74)
    assert (counts < everything.sum(1)).mean() > 0.3
    for row in range(2048):
        kept = np.flatnonzero(everything[row])[: counts[row]]
        assert np.flatnonzero(chosen[row]).tolist() == kept.tolist()
        assert (input_ids[row, kept[-1] + 1 :] == 9).all()


def test_rows_have_room_for_five_deviations() -> None:
    assert most_static_predictions(512, ObjectiveConfig()) == math.ceil(76.8 + 5 * math.sqrt(512 * 0.15 * 0.85))
    words = ObjectiveConfig(masking="whole_word")
    assert most_static_predictions(512, words) == math.ceil(76.8 + 10 * math.sqrt(512 * 0.15 * 0.85))
    assert most_static_predictions(8, ObjectiveConfig(mask_rate=0.9)) == 8


def test_padding_rows_have_no_predictions() -> None:
    rows = long_documents(0, 16)
    assert masked(rows)[2].tolist() == []
    none = replace(long_documents(2, 16), **{name: np.zeros(0, np.int64) for name in (
        "segment_row", "segment_start", "segment_length", "document", "offset")})  # fmt: skip
    assert masked(none)[2].tolist() == [0, 0]
