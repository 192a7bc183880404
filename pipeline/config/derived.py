"""Numbers that follow from a config and the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.base.errors import UserError
from pipeline.config.run import RunConfig


@dataclass(frozen=True)
class BatchPlan:
    """How one rank works through its share of a global batch.

    ``rows_per_rank == rows_per_micro_batch * accumulation``.
    """

    world_size: int
    rows_per_rank: int
    rows_per_micro_batch: int
    accumulation: int


def batch_plan(config: RunConfig, world_size: int) -> BatchPlan:
    """Share of a rank and its split into equal micro-batches.

    Equal shares keep every shape static; the micro-batch is the largest divisor of the share that is at most
    ``train.micro_batch_size``, so the same config runs on any number of ranks that divides the global batch.

    Raises:
        UserError: ``world_size`` does not divide ``train.global_batch_size``, is below 1, or above 1 under ``single``.
    """
    if world_size < 1:
        raise UserError(f"{world_size} ranks: at least 1 is needed.")
    if config.train.strategy == "single" and world_size > 1:
        raise UserError(f"train.strategy: `single` runs one rank, but {world_size} were started; use `ddp` or `zero1`.")
    rows = config.train.global_batch_size
    if rows % world_size:
        below = next(size for size in range(min(world_size, rows), 0, -1) if rows % size == 0)
        above = next((size for size in range(world_size + 1, rows + 1) if rows % size == 0), None)
        nearest = f"{below} or {above}" if above else str(below)
        multiple = (rows // world_size + 1) * world_size
        raise UserError(
            f"{world_size} ranks do not divide train.global_batch_size ({rows}): start {nearest} ranks, "
            f"or set train.global_batch_size to a multiple of {world_size} such as {multiple}."
        )
    share = rows // world_size
    largest = min(share, config.train.micro_batch_size)
    micro = next(size for size in range(largest, 0, -1) if share % size == 0)
    return BatchPlan(world_size, share, micro, share // micro)


def tokens_per_step(config: RunConfig) -> int:
    """Token slots of a global batch (padding included)."""
    return config.train.global_batch_size * config.data.sequence_length
