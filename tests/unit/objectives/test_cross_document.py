"""`data.cross_document_attention`: the segments of a row are one, padding stays apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.config.run import ObjectiveConfig
from pipeline.data.digest import row_digests
from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.layout import as_one_segment
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective
from tests.unit.objectives.hand_made_rows import VOCABULARY, bert_format, gpt_format, make_rows

CONFIGS = [ObjectiveConfig(name="mlm"), ObjectiveConfig(name="clm")]
SIZE = 24


def format_of(config: ObjectiveConfig) -> RowFormat:
    return gpt_format(SIZE) if config.name == "clm" else bert_format(SIZE)


def objective(config: ObjectiveConfig, cross: bool = True) -> Objective:
    return make_objective(
        config,
        VOCABULARY,
        format_of(config),
        5,
        packing="best_fit",
        cross_document_attention=cross,
    )


def some_lengths(seed: int) -> list[list[int]]:
    """Rows of 0 to 3 segments, some full."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(3, 9, generator.integers(0, 4)).tolist() for _ in range(6)]
    return [[*row, SIZE - sum(row)] if row and generator.random() < 0.4 else row for row in rows]


def real_tokens(rows: Rows) -> list[int]:
    return np.bincount(rows.segment_row, rows.segment_length, len(rows.tokens)).astype(int).tolist()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
@pytest.mark.parametrize("seed", range(30))
def test_bounds_positions_and_counts(config: ObjectiveConfig, seed: int) -> None:
    rows = make_rows(some_lengths(seed), format_of(config), first_row=seed)
    for number, batch in enumerate(objective(config).prepare(rows, 3, digests=True)):
        lengths = real_tokens(rows)[2 * number : 2 * number + 2]
        bounds = sorted({0, lengths[0], SIZE, SIZE + lengths[1], 2 * SIZE})
        assert batch.cu_seqlens.tolist() == bounds + [2 * SIZE] * (2 * 2 + 1 - len(bounds))
        positions = [position for first, last in pairwise(bounds) for position in range(last - first)]
        assert batch.position_ids.ravel().tolist() == positions
        assert int(batch.num_real_tokens) == sum(lengths)
        assert int(batch.sum_squared_lengths) == sum(length**2 for length in lengths)


@pytest.mark.parametrize("seed", range(30))
def test_clm_predicts_across_documents(seed: int) -> None:
    rows = make_rows(some_lengths(seed), gpt_format(SIZE))
    input_ids, labels = objective(CONFIGS[1]).labels_of(rows)
    expected = np.full((6, SIZE), -100)
    for row, length in enumerate(real_tokens(rows)):
        for position in range(length - 1):
            expected[row, position] = rows.tokens[row, position + 1]
    assert np.array_equal(labels, expected)
    assert np.array_equal(input_ids, rows.tokens)


def test_masks_are_the_same_and_digests_name_the_documents() -> None:
    rows = make_rows([[5, 6], [24], [3, 9, 12], []], bert_format(SIZE))
    joined, apart = objective(CONFIGS[0]), objective(CONFIGS[0], cross=False)
    for ours, other in zip(joined.labels_of(rows), apart.labels_of(rows), strict=True):
        assert np.array_equal(ours, other)
    (batch,) = joined.prepare(rows, 1, digests=True)
    assert batch.row_digests is not None
    assert np.array_equal(batch.row_digests.numpy(), row_digests(rows, *joined.labels_of(rows)))


def test_one_segment_of_pairs_and_of_segments_that_do_not_begin_at_the_row() -> None:
    rows = make_rows([[5, 6], [], [7, 8]], bert_format(SIZE))
    moved = replace(rows, segment_start=rows.segment_start + np.int32(2), second_start=rows.segment_start + np.int32(4))
    one = as_one_segment(moved)
    assert one.segment_row.tolist() == [0, 2]
    assert one.segment_start.tolist() == [2, 2]
    assert one.segment_length.tolist() == [11, 15]
    assert one.document.tolist() == [0, 2]
    assert one.second_start is not None
    assert one.second_start.tolist() == [4, 4]
    assert one.pair_label is None
    empty = as_one_segment(make_rows([[], []], bert_format(SIZE)))
    assert len(empty.segment_row) == len(empty.segment_length) == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_shapes_are_small_and_the_same_whatever_the_rows_hold(config: ObjectiveConfig) -> None:
    for seed in range(5):
        (batch,) = objective(config).prepare(make_rows(some_lengths(seed), format_of(config)), 1, digests=True)
        assert batch.cu_seqlens.shape == (2 * 6 + 1,)
        assert batch.cu_seqlens.dtype == torch.int32
