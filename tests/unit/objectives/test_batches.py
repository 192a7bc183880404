"""From rows to micro-batches: layout, fixed shapes, counts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.config.run import ObjectiveConfig
from pipeline.data.digest import row_digests
from pipeline.data.rows import Rows
from pipeline.objectives import layout
from pipeline.objectives.batch import Batch
from pipeline.objectives.layout import Capacity, has_next
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective
from tests.unit.objectives.hand_made_rows import VOCABULARY, bert_format, gpt_format, make_rows

MLM, CLM = ObjectiveConfig(name="mlm", mask_rate=0.3), ObjectiveConfig(name="clm")
LENGTHS = [[24], [3, 9, 12], [10, 10], [5], [3, 3, 3], [8, 16], [23], [4, 4, 4, 4, 4, 4]]
BERT_LIKE = [[24], [8, 16], [10, 10], [5]]


def objective(config: ObjectiveConfig) -> Objective:
    row_format = bert_format(24) if config.name == "mlm" else gpt_format(24)
    return make_objective(config, VOCABULARY, row_format, 5, packing="concatenate")


def rows_for(config: ObjectiveConfig, lengths: list[list[int]] | None = None, first_row: int = 0) -> Rows:
    row_format = bert_format(24) if config.name == "mlm" else gpt_format(24)
    return make_rows(LENGTHS if lengths is None else lengths, row_format, first_row=first_row)


def shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("config", [MLM, CLM], ids=["mlm", "clm"])
def test_shapes_are_the_same_whatever_the_rows_hold(config: ObjectiveConfig) -> None:
    made = [
        shapes(batch)
        for lengths in ([[24]] * 8, [[3]] * 8, LENGTHS, [[3] * 8] * 8)
        for batch in objective(config).prepare(rows_for(config, lengths), 2)
    ]
    assert all(shape == made[0] for shape in made)
    assert made[0]["input_ids"] == made[0]["position_ids"] == (4, 24)
    assert made[0]["labels"] == made[0]["prediction_positions"]


def test_cu_seqlens_are_short_but_where_many_segments_need_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for twice the mean of the corpus, which is documents a token x slots + 2 of a row."""
    monkeypatch.setattr(layout, "_SPARE_BOUNDS", 3)
    short = make_objective(
        CLM, VOCABULARY, gpt_format(24), 5, packing="concatenate", documents_per_token=1 / 48
    )  # 2 x 2.5 x 4 rows and 3
    usual, crowded = ([[12, 12]] * 4, [[3] * 8] * 4)
    few, many = short.prepare(rows_for(CLM, usual + crowded), 2)
    whole, _ = objective(CLM).prepare(rows_for(CLM, usual + crowded), 2)
    assert len(few.cu_seqlens) == 23
    assert len(many.cu_seqlens) == len(whole.cu_seqlens) > 4 * 8
    assert torch.equal(few.cu_seqlens, whole.cu_seqlens[:23])
    assert few.cu_seqlens[-1] == 4 * 24
    assert few.cu_seqlens.is_contiguous()
    assert many.cu_seqlens[:33].tolist() == list(range(0, 97, 3))


@pytest.mark.parametrize("config", [MLM, CLM], ids=["mlm", "clm"])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 8])
def test_segments_and_positions(config: ObjectiveConfig, num_micro_batches: int) -> None:
    rows = rows_for(config)
    batches = objective(config).prepare(rows, num_micro_batches)
    size = 8 // num_micro_batches
    for number, batch in enumerate(batches):
        lengths = LENGTHS[number * size : (number + 1) * size]
        expected = [0]
        for row, in_row in enumerate(lengths):
            for length in in_row:
                expected.append(expected[-1] + length)
            if expected[-1] < (row + 1) * 24:  # the padded tail
                expected.append((row + 1) * 24)
        bounds = batch.cu_seqlens.tolist()
        assert bounds[: len(expected)] == expected
        assert set(bounds[len(expected) :]) <= {size * 24}
        assert batch.cu_seqlens.dtype == torch.int32
        positions = [position for first, last in pairwise(expected) for position in range(last - first)]
        assert batch.position_ids.ravel().tolist() == positions
        assert batch.max_seqlen == 24
        assert int(batch.num_real_tokens) == sum(map(sum, lengths))
        assert int(batch.sum_squared_lengths) == sum(length**2 for row in lengths for length in row)
        predicted = batch.prediction_positions[batch.labels != -100]
        own_segment = torch.searchsorted(batch.cu_seqlens, predicted, right=True) - 1
        assert batch.sum_prediction_lengths == int(batch.cu_seqlens.diff()[own_segment].sum())


@pytest.mark.parametrize("config", [MLM, CLM], ids=["mlm", "clm"])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 8])
def test_micro_batches_hold_what_labels_of_says(config: ObjectiveConfig, num_micro_batches: int) -> None:
    rows = rows_for(config, first_row=1000)
    input_ids, labels = objective(config).labels_of(rows)
    batches = objective(config).prepare(rows, num_micro_batches, step=17)
    assert np.array_equal(torch.cat([batch.input_ids for batch in batches]).numpy(), input_ids)
    seen = []
    for batch in batches:
        dense = torch.full((batch.input_ids.numel(),), -100)
        real = batch.labels != -100
        dense[batch.prediction_positions[real]] = batch.labels[real]
        seen.append(dense.view(batch.input_ids.shape))
        assert int(real.sum()) == int(batch.num_predictions)
        assert (batch.prediction_positions.diff() > 0).all()
    assert np.array_equal(torch.cat(seen).numpy(), labels)
    total = int((labels != -100).sum())
    assert {int(batch.window_predictions) for batch in batches} == {total}
    assert sum(int(batch.num_predictions) for batch in batches) == total
    assert torch.cat([batch.row_numbers for batch in batches]).tolist() == list(range(1000, 1008))
    size = 8 // num_micro_batches
    assert [int(batch.first_slot_key) for batch in batches] == list(range(1000, 1008, size))
    assert {batch.step for batch in batches} == {17}


def test_causal_labels_are_the_next_tokens_of_the_segment() -> None:
    rows = rows_for(CLM)
    input_ids, labels = objective(CLM).labels_of(rows)
    assert np.array_equal(input_ids, rows.tokens)
    expected = np.full((8, 24), -100)
    for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
        for position in range(start, start + length - 1):
            expected[row, position] = rows.tokens[row, position + 1]
    assert np.array_equal(labels, expected)


def test_masked_labels_are_the_original_tokens() -> None:
    rows = rows_for(MLM)
    input_ids, labels = objective(MLM).labels_of(rows)
    predicted = labels != -100
    assert np.array_equal(labels[predicted], rows.tokens[predicted])
    assert np.array_equal(input_ids[~predicted], rows.tokens[~predicted])
    assert (input_ids[predicted] == 4).sum() > 0.5 * predicted.sum() > 0


def test_padding_anywhere_is_no_text() -> None:
    """A gap before or between segments becomes padding of its own, too."""
    row_format = bert_format(24)
    rows = make_rows([[5, 6], [7]], row_format)
    moved = make_rows(
        [[5, 6], [7]],
        row_format,
        segment_start=np.array([2, 9, 0], np.int32),
        segment_row=np.array([0, 0, 1], np.int32),
    )
    no, yes = [False], [True]
    assert has_next(moved)[0].tolist() == no * 2 + yes * 4 + no * 3 + yes * 5 + no * 10
    assert has_next(rows)[0].tolist() == yes * 4 + no + yes * 5 + no * 14
    (batch,) = objective(MLM).prepare(moved, 1)
    assert batch.cu_seqlens[:8].tolist() == [0, 2, 7, 9, 15, 24, 31, 48]


def test_digests_are_those_of_the_rows_and_only_made_when_asked_for() -> None:
    rows = rows_for(MLM, first_row=40)
    expected = row_digests(rows, *objective(MLM).labels_of(rows))
    batches = objective(MLM).prepare(rows, 4, digests=True)
    assert np.array_equal(torch.cat([batch.row_digests for batch in batches]).numpy(), expected)
    assert all(batch.row_digests is None for batch in objective(MLM).prepare(rows, 4))


def test_uneven_splits_and_overfull_rows_are_bugs_of_the_caller() -> None:
    with pytest.raises(ValueError, match="8 rows cannot be split into 3 equal micro-batches"):
        objective(MLM).prepare(rows_for(MLM), 3)
    crowded = make_objective(MLM, VOCABULARY, bert_format(24), 5, packing="best_fit")  # 3 segments and a tail a row
    with pytest.raises(ValueError, match="needs 49 places where the capacity is 33"):
        crowded.prepare(rows_for(MLM, [[4] * 6] * 8), 1)
    crowded.capacity = Capacity(predictions_per_row=2, segments_per_row=9)
    with pytest.raises(ValueError, match="predictions among 192 positions do not fit 16 places"):
        crowded.prepare(rows_for(MLM), 1)


def test_moving_a_batch_leaves_facts_for_the_log_behind() -> None:
    (batch,) = objective(MLM).prepare(rows_for(MLM), 1, digests=True)
    moved = batch.to("meta")
    on_device = {name for name, value in vars(moved).items() if isinstance(value, torch.Tensor) and value.is_meta}
    assert on_device == {
        "input_ids",
        "position_ids",
        "cu_seqlens",
        "prediction_positions",
        "labels",
    }
    assert moved.row_numbers is batch.row_numbers
    assert moved.step == batch.step
