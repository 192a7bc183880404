"""Numbers that follow from a config and the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pipeline.base.errors import UserError
from pipeline.config.hugging_face import AUTO
from pipeline.config.objective import Head, ObjectiveConfig, ObjectiveName
from pipeline.config.run import PAIR_OBJECTIVES, MixtureSourceConfig, RunConfig
from pipeline.config.stages import Stage, stages_of


@dataclass(frozen=True)
class BatchPlan:
    """How the ranks work through global batches: all alike, in equal micro-batches.

    A rank's share is at most ``micro_rows(stage) * accumulation`` rows; where it is less, because the ranks or the
    micro-batches do not divide the batch, filler rows without predictions make up the difference.
    """

    world_size: int
    accumulation: int
    """Micro-batches of a rank in a step. The same in all stages: what changes with the stage is their size."""

    micro_rows: Mapping[Stage, int]
    """Rows of a micro-batch in every stage."""

    def rows_per_rank(self, stage: Stage) -> int:
        """Rows a rank computes in a step, filler rows included."""
        return self.micro_rows[stage] * self.accumulation


def batch_plan(config: RunConfig, world_size: int) -> BatchPlan:
    """Shares of the ranks and their split into micro-batches.

    Every rank has the same number of micro-batches of the same shape, so that collectives meet and graphs are compiled
    once a stage. Ranks that do not divide the global batch differ by one row.

    Raises:
        UserError: more ranks than rows, no rank, or several under ``single``.
    """
    if world_size < 1:
        raise UserError(f"{world_size} ranks: at least 1 is needed.")
    if config.train.strategy == "single" and world_size > 1:
        raise UserError(f"train.strategy: `single` runs one rank, but {world_size} were started; use `ddp` or `zero1`.")
    stages = stages_of(config).begun(config.train.steps)
    smallest = min(stages, key=lambda stage: stage.global_batch_size)
    if world_size > smallest.global_batch_size:
        raise UserError(
            f"{world_size} ranks share {smallest.global_batch_size} rows a step (train.global_batch_size, from step "
            f"{smallest.first_step + 1}): ranks would have none. Start at most {smallest.global_batch_size} ranks or "
            "raise it."
        )
    shares = {stage: -(-stage.global_batch_size // world_size) for stage in stages}
    most_tokens = config.train.micro_batch_size * config.data.sequence_length
    accumulation = max(-(-share // max(1, most_tokens // stage.sequence_length)) for stage, share in shares.items())
    return BatchPlan(world_size, accumulation, {stage: -(-share // accumulation) for stage, share in shares.items()})


def head_of(config: RunConfig) -> Head:
    """The head of the model that is trained; of family `auto` it says which class."""
    tasks = config.objective.tasks
    if config.model.family == AUTO:
        return _HEADS_OF_AUTO[tasks[0].name]
    return "pairs" if any(task.name in PAIR_OBJECTIVES for task in tasks) else "tokens"


def has_generator(config: RunConfig) -> bool:
    """Whether a generator is trained beside the model."""
    return any(task.name == "rtd" for task in config.objective.tasks)


def row_objective(config: RunConfig, task: ObjectiveConfig | None = None) -> ObjectiveConfig:
    """The objective that rows are prepared for: distillation takes those of its hard loss.

    Args:
        task: one of the run's objectives; default: the first.
    """
    task = config.objective.tasks[0] if task is None else task
    return replace(task, name="clm" if config.model.family == "gpt2" else "mlm") if task.name == "distil" else task


_HEADS_OF_AUTO: Final[Mapping[ObjectiveName, Head]] = {"mlm": "masked", "clm": "causal", "denoise": "seq2seq"}


def is_causal(config: RunConfig) -> bool:
    """Whether a token of the model sees only what stands before it."""
    return row_objective(config).name == "clm"


def corpora_of(config: RunConfig) -> list[MixtureSourceConfig]:
    """The corpora of a run: those of its mixture, or its one."""
    return config.data.mixture or [MixtureSourceConfig(corpus=config.data.corpus)]
