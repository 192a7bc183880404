"""Stages: batch size and sequence length as closed forms of the step, against a walk from step to step."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from pipeline.config.optimization import ScheduleConfig
from pipeline.config.run import BatchWarmupConfig, DataConfig, RunConfig, StageConfig, TrainConfig
from pipeline.config.stages import Stages, schedule_in_steps, stages_of


def random_stages(seed: int) -> Stages:
    generator = np.random.default_rng(seed)
    lengths = [
        (int(generator.integers(0, 9)), int(generator.integers(1, 12)), int(generator.choice([16, 32])))
        for _ in range(int(generator.integers(1, 7)))
    ]
    return Stages.of_lengths(lengths)


@pytest.mark.parametrize("seed", range(40))
def test_rows_slots_and_steps_are_those_of_a_walk(seed: int) -> None:
    stages = random_stages(seed)
    row = slot = 0
    for step in range(60):
        stage = stages.of_step(step)
        assert stages.first_row(step) == row
        assert stages.slots_before(step) == slot
        assert {stages.step_of_row(row + n) for n in range(stage.global_batch_size)} == {step}
        assert stages.steps_of_slots(slot) == step
        assert stages.steps_of_slots(slot + 1) == step + 1
        row += stage.global_batch_size
        slot += stage.global_batch_size * stage.sequence_length


@pytest.mark.parametrize("seed", range(20))
def test_phases_are_runs_of_one_sequence_length(seed: int) -> None:
    stages = random_stages(seed)
    phases = stages.phases()
    assert [stage for phase in phases for stage in phase] == list(stages.all)
    lengths = [{stage.sequence_length for stage in phase} for phase in phases]
    assert all(len(one) == 1 for one in lengths)
    assert all(one != other for one, other in pairwise(lengths))


def config(warmup: BatchWarmupConfig | None = None, *stages: StageConfig, **schedule) -> RunConfig:
    train = TrainConfig(global_batch_size=64, stages=list(stages), batch_warmup=warmup or BatchWarmupConfig())
    data = DataConfig(sequence_length=128)
    return replace(RunConfig(), train=train, data=data, schedule=ScheduleConfig(**schedule))


def test_a_run_without_stages_has_one() -> None:
    (stage,) = stages_of(config()).all
    assert (stage.global_batch_size, stage.sequence_length, stage.first_step) == (64, 128, 0)
    assert stage.lane_rows == 64


def test_stages_take_their_length_in_steps_or_tokens() -> None:
    made = stages_of(
        config(
            None,
            StageConfig(steps=10, sequence_length=32, global_batch_size=256),
            StageConfig(tokens=100_000.0),
            StageConfig(sequence_length=64),
        )
    )
    shapes = [(stage.first_step, stage.global_batch_size, stage.sequence_length) for stage in made.all]
    assert shapes == [(0, 256, 32), (10, 64, 128), (23, 64, 64)]  # 100,000 / (64 * 128) = 12.2 steps


def test_the_batch_grows_over_the_warmup_tokens() -> None:
    made = stages_of(config(BatchWarmupConfig(tokens=30_000.0, start=16, increment=16)))
    # 10,000 slots for each of 16, 32, 48 rows: 4.9, 2.4, 1.6 steps.
    assert [(stage.first_step, stage.global_batch_size) for stage in made.all] == [(0, 16), (5, 32), (8, 48), (10, 64)]
    assert {stage.lane_rows for stage in made.all} == {64}
    assert made.until(6).all == made.all[:2]
    staged = stages_of(
        config(BatchWarmupConfig(tokens=30_000.0, start=16, increment=16), StageConfig(steps=40), StageConfig())
    )
    assert [stage.first_step for stage in staged.all] == [0, 5, 8, 10, 40]


def test_a_stage_in_tokens_has_them_with_its_warmup() -> None:
    warmup = BatchWarmupConfig(tokens=30_000.0, start=16, increment=16)
    staged = stages_of(config(warmup, StageConfig(tokens=200_000.0), StageConfig(sequence_length=64)))
    assert [stage.global_batch_size for stage in staged.all] == [16, 32, 48, 64, 64]
    last = staged.all[-1].first_step
    assert staged.slots_before(last - 1) < 200_000 <= staged.slots_before(last)


def test_a_warmup_in_tokens_becomes_steps() -> None:
    assert schedule_in_steps(config(warmup_tokens=10 * 64 * 128.0)).warmup_steps == 10
    assert schedule_in_steps(config(warmup_tokens=10 * 64 * 128.0 + 1)).warmup_steps == 11
    assert schedule_in_steps(config(warmup_steps=7)).warmup_steps == 7
