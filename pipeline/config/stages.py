"""Batch size and sequence length as pure functions of the step.

A run is a list of stages; its rows are numbered through: row ``n`` is in step ``k`` if ``first_row(k) <= n <
first_row(k + 1)``, and both ways are closed forms. Steps are counted from 0 here.

Letters: G rows of a step (global batch), S sequence length.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from pipeline.config.optimization import ScheduleConfig
from pipeline.config.run import BatchWarmupConfig, RunConfig, StageConfig


@dataclass(frozen=True)
class Stage:
    """Steps of one shape."""

    first_step: int
    first_row: int
    """Run-wide number of the first row of the first step."""

    first_slot: int
    """Token slots of all steps before."""

    global_batch_size: int
    """G."""

    sequence_length: int
    """S."""

    lane_rows: int
    """Rows a step that the order of the phase is laid out for: G, or where it is a warmup, what that grows to."""

    def __str__(self) -> str:
        """For people, who count steps from 1."""
        rows = f"{self.global_batch_size:,} rows of {self.sequence_length:,} tokens"
        return f"from step {self.first_step + 1:,}: {rows}" if self.first_step else rows


@dataclass(frozen=True)
class Stages:
    """All stages of a run in their order; the last one does not end."""

    all: tuple[Stage, ...]

    @classmethod
    def of_lengths(cls, lengths: Sequence[tuple[int | None, int, int] | tuple[int | None, int, int, int]]) -> Self:
        """From (steps, G, S) of every stage, of a warmup also the G that it grows to.

        The steps of the last stage are not read; stages of 0 steps are left out.
        """
        stages: list[Stage] = []
        step = row = slot = 0
        for number, (steps, size, length, *grown) in enumerate(lengths):
            if steps == 0 and number < len(lengths) - 1:
                continue
            stages.append(Stage(step, row, slot, size, length, *(grown or [size])))
            step += steps or 0
            row += (steps or 0) * size
            slot += (steps or 0) * size * length
        return cls(tuple(stages))

    @classmethod
    def single(cls, global_batch_size: int, sequence_length: int) -> Self:
        """One stage for the whole run."""
        return cls.of_lengths([(None, global_batch_size, sequence_length)])

    def of_step(self, step: int) -> Stage:
        """The stage that a step is in."""
        if step < 0:
            raise ValueError(f"step {step}")
        return self.all[bisect.bisect_right(self.all, step, key=lambda stage: stage.first_step) - 1]

    def first_row(self, step: int) -> int:
        """Run-wide number of the step's first row."""
        stage = self.of_step(step)
        return stage.first_row + (step - stage.first_step) * stage.global_batch_size

    def step_of_row(self, row: int) -> int:
        """The step that a row is in."""
        if row < 0:
            raise ValueError(f"row {row}")
        stage = self.all[bisect.bisect_right(self.all, row, key=lambda stage: stage.first_row) - 1]
        return stage.first_step + (row - stage.first_row) // stage.global_batch_size

    def slots_before(self, step: int) -> int:
        """Token slots (padding included) of all steps before."""
        stage = self.of_step(step)
        return stage.first_slot + (step - stage.first_step) * stage.global_batch_size * stage.sequence_length

    def steps_of_slots(self, slots: float) -> int:
        """The fewest steps that have so many token slots."""
        stage = self.all[bisect.bisect_right(self.all, slots, key=lambda stage: stage.first_slot) - 1]
        left = max(0.0, slots - stage.first_slot)
        return stage.first_step + math.ceil(left / (stage.global_batch_size * stage.sequence_length))

    def longest_row(self, steps: int) -> int:
        """Longest sequence length of the first ``steps`` steps (of the first stage, for none)."""
        return max(stage.sequence_length for stage in self.begun(steps))

    def begun(self, steps: int) -> list[Stage]:
        """The stages of the first ``steps`` steps; the first in any case."""
        return [stage for stage in self.all if stage.first_step < max(steps, 1)]

    def until(self, steps: int) -> Self:
        """What the first ``steps`` steps need."""
        return type(self)(tuple(self.begun(steps)))

    def phases(self) -> list[tuple[Stage, ...]]:
        """Runs of consecutive stages with one sequence length: within one, only the number of rows a step changes."""
        phases: list[list[Stage]] = []
        for stage in self.all:
            if phases and phases[-1][-1].sequence_length == stage.sequence_length:
                phases[-1].append(stage)
            else:
                phases.append([stage])
        return [tuple(phase) for phase in phases]


def stages_of(config: RunConfig) -> Stages:
    """The stages of a run, its batch warmup included; ``config`` has passed its checks."""
    return Stages.of_lengths(list(_lengths(config)))


def _lengths(config: RunConfig) -> Iterator[tuple[int | None, int, int, int]]:
    stages = config.train.stages or [StageConfig()]
    for number, stage in enumerate(stages):
        rows, slots = stage_shape(stage, config)
        warmup = list(warmup_sizes(config.train.batch_warmup, rows, slots)) if number == 0 else []
        for warmup_steps, warmup_rows in warmup:
            yield warmup_steps, warmup_rows, slots, rows
        is_last = number == len(stages) - 1
        yield None if is_last else full_steps(stage, warmup, rows, slots), rows, slots, rows


def stage_shape(stage: StageConfig, config: RunConfig) -> tuple[int, int]:
    """Rows of a step of a stage, and slots of a row."""
    rows, slots = stage.global_batch_size, stage.sequence_length
    return rows or config.train.global_batch_size, slots or config.data.sequence_length


def full_steps(stage: StageConfig, warmup: Sequence[tuple[int, int]], rows: int, slots: int) -> int:
    """Steps of the full batch that a stage with an end has after these (steps, rows) of a warmup; below 0 where the
    warmup is the longer one."""
    if stage.steps is not None:
        return stage.steps - sum(steps for steps, _ in warmup)
    warmup_slots = sum(steps * size for steps, size in warmup) * slots
    return math.ceil(((stage.tokens or 0) - warmup_slots) / (rows * slots))


def schedule_in_steps(config: RunConfig) -> ScheduleConfig:
    """The learning-rate schedule with its warmup in steps, however it was given."""
    schedule = config.schedule
    if schedule.warmup_tokens <= 0:
        return schedule
    return replace(schedule, warmup_steps=stages_of(config).steps_of_slots(schedule.warmup_tokens), warmup_tokens=0.0)


def warmup_sizes(warmup: BatchWarmupConfig, rows: int, slots: int) -> Iterator[tuple[int, int]]:
    """(steps, rows) of every size before the full one: ``start, start + increment, ...`` below ``rows``."""
    if warmup.tokens <= 0 or warmup.increment < 1:
        return
    sizes = range(warmup.start, rows, warmup.increment)
    for size in sizes:
        yield math.ceil(warmup.tokens / len(sizes) / (size * slots)), size
