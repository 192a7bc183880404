"""Batch arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.base.errors import UserError
from pipeline.config.derived import batch_plan, tokens_per_step
from pipeline.config.run import RunConfig, TrainConfig


def config(rows: int, micro: int) -> RunConfig:
    return replace(RunConfig(), train=TrainConfig(global_batch_size=rows, micro_batch_size=micro))


def test_shares_are_equal_and_micro_batches_fill_them() -> None:
    for rows in range(1, 65):
        for micro in (1, 3, 8, 100):
            for world_size in range(1, rows + 1):
                if rows % world_size:
                    continue
                plan = batch_plan(config(rows, micro), world_size)
                assert plan.rows_per_rank * world_size == rows
                assert plan.rows_per_micro_batch * plan.accumulation == plan.rows_per_rank
                assert plan.rows_per_micro_batch <= micro


def test_the_largest_micro_batch_that_divides_is_taken() -> None:
    assert batch_plan(config(256, 32), 3 - 1).rows_per_micro_batch == 32
    assert batch_plan(config(24, 8), 2).rows_per_micro_batch == 6


@pytest.mark.parametrize(
    ("rows", "world_size", "message"),
    [
        (
            8,
            3,
            r"3 ranks do not divide train.global_batch_size \(8\): start 2 or 4 ranks, or .* multiple of 3 such as 9",
        ),
        (8, 16, r"start 8 ranks, or set train.global_batch_size to a multiple of 16 such as 16"),
    ],
)
def test_a_world_that_does_not_divide_is_refused(rows: int, world_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        batch_plan(config(rows, 4), world_size)


def test_tokens_per_step_counts_slots() -> None:
    assert tokens_per_step(config(256, 32)) == 256 * 512
