"""Filler rows, which make the shares of ranks equal, change nothing that is learned, counted or digested."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from pipeline.config.run import Masking, ObjectiveConfig
from pipeline.data.digest import combine_row_digests
from pipeline.data.gather import filler_rows, join_rows
from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective
from tests.unit.objectives.hand_made_rows import VOCABULARY, bert_format, gpt_format, make_rows

LENGTHS = [[24], [3, 9, 12], [10, 10], [5], [3, 3, 3]]
CONFIGS = [*(ObjectiveConfig(masking=kind, mask_rate=0.3) for kind in get_args(Masking)), ObjectiveConfig(name="clm")]


def parts(config: ObjectiveConfig) -> tuple[Objective, RowFormat, Rows]:
    row_format = gpt_format(24) if config.name == "clm" else bert_format(24)
    objective = make_objective(config, VOCABULARY, row_format, 5, packing="concatenate")
    word_starts = np.random.default_rng(1).random((len(LENGTHS), 24)) < 0.6
    return objective, row_format, make_rows(LENGTHS, row_format, first_row=10, word_starts=word_starts)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{config.masking}")
@pytest.mark.parametrize("num_fillers", [1, 5])
def test_a_batch_with_fillers_is_the_batch_without(config: ObjectiveConfig, num_fillers: int) -> None:
    objective, row_format, rows = parts(config)
    filled = join_rows([rows, filler_rows(num_fillers, row_format, like=rows)])
    input_ids, labels = objective.labels_of(filled)
    plain_ids, plain_labels = objective.labels_of(rows)
    assert np.array_equal(input_ids[:5], plain_ids)
    assert np.array_equal(labels[:5], plain_labels)
    assert (labels[5:] == -100).all()
    assert (input_ids[5:] == row_format.pad_id).all()
    (batch,), (plain,) = (objective.prepare(some, 1, digests=True) for some in (filled, rows))
    for name in (
        "window_predictions",
        "num_predictions",
        "num_real_tokens",
        "sum_squared_lengths",
        "sum_prediction_lengths",
        "first_slot_key",
    ):
        assert getattr(batch, name) == getattr(plain, name)
    assert batch.row_numbers.tolist() == [10, 11, 12, 13, 14] + [-1] * num_fillers
    assert batch.row_digests is not None
    assert plain.row_digests is not None
    assert (batch.row_digests[5:] == 0).all()
    with_fillers, without = (
        combine_row_digests(made.row_numbers.numpy(), made.row_digests.numpy()) for made in (batch, plain)
    )
    assert with_fillers == without
    # A filler is one segment of padding, a whole row long.
    num_bounds = len(set(plain.cu_seqlens.tolist()))
    expected = [5 * 24 + 24 * row for row in range(1, num_fillers + 1)]
    assert batch.cu_seqlens.tolist()[num_bounds : num_bounds + num_fillers] == expected
    assert batch.position_ids[5:].tolist() == [list(range(24))] * num_fillers


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{config.masking}")
def test_a_micro_batch_of_fillers_alone_has_the_shapes_of_any_other(config: ObjectiveConfig) -> None:
    objective, row_format, rows = parts(config)
    filled = join_rows([rows, filler_rows(5, row_format, like=rows)])
    first, second = objective.prepare(filled, 2, digests=True)
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            other = getattr(second, name)
            assert (value.shape, value.dtype) == (other.shape, other.dtype)
    assert int(second.num_predictions) == int(second.num_real_tokens) == int(second.sum_squared_lengths) == 0
    assert set(second.labels.tolist()) == {-100}
    assert int(second.window_predictions) == int(first.num_predictions) > 0
    assert second.sum_prediction_lengths == 0
    assert (second.prediction_positions.diff() > 0).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{config.masking}")
def test_a_rank_may_have_fillers_alone(config: ObjectiveConfig) -> None:
    objective, row_format, rows = parts(config)
    (batch,) = objective.prepare(filler_rows(3, row_format, like=rows), 1, digests=True)
    assert int(batch.window_predictions) == 0
    assert batch.cu_seqlens[:4].tolist() == [0, 24, 48, 72]
