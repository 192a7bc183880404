"""Numbers that follow from a config and, where it has been built, its corpus. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.derived import batch_plan, tokens_per_step
from pipeline.config.run import RunConfig
from pipeline.models.flops import num_parameters


def derived_numbers(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Global batch, tokens a step, steps an epoch, parameters, ... for ``pretrain config show``.

    Steps an epoch and the tokenizer's size need the corpus; without it they are None.

    Raises:
        UserError: ``world_size`` does not divide the global batch, or the corpus is damaged.
    """
    plan = batch_plan(config, world_size)
    numbers: dict[str, Any] = {
        "global_batch_rows": config.train.global_batch_size,
        "tokens_per_step": tokens_per_step(config),
        "tokens_of_the_run": tokens_per_step(config) * config.train.steps,
        "ranks": plan.world_size,
        "rows_per_rank": plan.rows_per_rank,
        "rows_per_micro_batch": plan.rows_per_micro_batch,
        "gradient_accumulation": plan.accumulation,
        "parameters": None,
        "steps_per_epoch": None,
        "epochs": None,
    }
    if Path(config.data.corpus).is_dir():
        from pipeline.train.streams import open_streams

        streams = open_streams(config)
        numbers["parameters"] = streams.num_parameters
        rows = streams.train.num_rows
        numbers["rows_per_epoch"] = rows
        numbers["steps_per_epoch"] = round(rows / config.train.global_batch_size, 2)
        numbers["epochs"] = round(config.train.steps * config.train.global_batch_size / rows, 2)
    elif config.model.vocab_size is not None:
        numbers["parameters"] = num_parameters(config.model, config.model.vocab_size)
    return numbers
