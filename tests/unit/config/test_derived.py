"""Batch arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.base.errors import UserError
from pipeline.config.derived import batch_plan, corpora_of
from pipeline.config.run import DataConfig, MixtureSourceConfig, RunConfig, StageConfig, StrategyName, TrainConfig
from pipeline.config.stages import stages_of


def config(rows: int, micro: int, stages: tuple[StageConfig, ...] = (), strategy: StrategyName = "ddp") -> RunConfig:
    train = TrainConfig(
        global_batch_size=rows,
        micro_batch_size=micro,
        stages=list(stages),
        strategy=strategy,
    )
    return replace(RunConfig(), train=train)


def test_every_share_fits_and_little_is_filled_up() -> None:
    for rows in range(1, 65):
        for micro in (1, 3, 8, 100):
            for world_size in range(1, rows + 1):
                plan = batch_plan(config(rows, micro), world_size)
                (stage,) = stages_of(config(rows, micro)).all
                share = -(-rows // world_size)
                assert plan.micro_rows[stage] <= micro
                assert plan.accumulation == -(-share // micro)  # no more micro-batches than needed
                assert share <= plan.rows_per_rank(stage) < share + plan.accumulation


def test_micro_batches_divide_the_share_where_they_can() -> None:
    for rows, micro, world_size, expected in ((256, 32, 2, 32), (24, 8, 2, 6), (7, 4, 1, 4)):
        plan = batch_plan(config(rows, micro), world_size)
        assert list(plan.micro_rows.values()) == [expected]


def test_stages_have_as_many_micro_batches_and_as_many_tokens_at_most() -> None:
    stages = (StageConfig(steps=10, sequence_length=128, global_batch_size=1024), StageConfig(global_batch_size=256))
    made = config(256, 32, stages)
    plan = batch_plan(made, 2)
    first, last = stages_of(made).all
    assert plan.accumulation == 4
    assert (plan.micro_rows[first], plan.micro_rows[last]) == (128, 32)


def test_more_ranks_than_rows_are_refused() -> None:
    with pytest.raises(UserError, match=r"16 ranks share 8 rows a step .*from step 1\): .*at most 8 ranks or raise it"):
        batch_plan(config(8, 4), 16)
    stages = (StageConfig(steps=10), StageConfig(global_batch_size=3))
    with pytest.raises(UserError, match=r"4 ranks share 3 rows a step .*from step 11\)"):
        batch_plan(config(8, 4, stages), 4)
    with pytest.raises(UserError, match=r"0 ranks: at least 1"):
        batch_plan(config(8, 4), 0)
    with pytest.raises(UserError, match=r"`single` runs one rank, but 2 were started"):
        batch_plan(config(8, 4, strategy="single"), 2)


def test_the_corpora_are_the_mixture_or_the_one() -> None:
    one = replace(RunConfig(), data=DataConfig(corpus="a"))
    assert [entry.corpus for entry in corpora_of(one)] == ["a"]
    several = replace(RunConfig(), data=DataConfig(mixture=[MixtureSourceConfig("a"), MixtureSourceConfig("b", 2.0)]))
    assert [(entry.corpus, entry.weight) for entry in corpora_of(several)] == [("a", None), ("b", 2.0)]
