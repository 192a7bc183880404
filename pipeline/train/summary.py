"""Numbers that follow from a config and, where it has been built, its corpus. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.derived import batch_plan, corpora_of, head_of
from pipeline.config.hugging_face import AUTO
from pipeline.config.run import RunConfig
from pipeline.config.stages import stages_of
from pipeline.models.auto import auto_config
from pipeline.models.flops import num_parameters

if TYPE_CHECKING:
    from pipeline.train.streams import Streams


def derived_numbers(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Global batch, tokens a step, steps an epoch, parameters, ... for ``pretrain config show``.

    Steps an epoch and the tokenizer's size need the corpus; without it they are None.

    Raises:
        UserError: more ranks than rows, the corpus is damaged, or transformers refuses the config of family ``auto``.
    """
    if config.model.family == AUTO:
        auto_config(config.model, head_of(config), config.model.vocab_size or 64, {})
    plan = batch_plan(config, world_size)
    stages = stages_of(config)
    last = stages.of_step(config.train.steps - 1)
    numbers: dict[str, Any] = {
        "global_batch_rows": last.global_batch_size,
        "tokens_per_step": last.global_batch_size * last.sequence_length,
        "tokens_of_the_run": stages.slots_before(config.train.steps),
        "ranks": plan.world_size,
        "rows_per_rank": plan.rows_per_rank(last),
        "rows_per_micro_batch": plan.micro_rows[last],
        "gradient_accumulation": plan.accumulation,
        "stages": [str(stage) for stage in stages.all] if len(stages.all) > 1 else None,
        "parameters": None,
        "rows_per_epoch": None,
        "epochs": None,
    }
    if all(_is_there(entry.corpus) for entry in corpora_of(config)):
        from pipeline.train.streams import open_streams

        streams = open_streams(config)
        numbers["parameters"] = streams.num_parameters
        numbers["rows_per_epoch"] = streams.train.num_rows
        numbers["steps_per_epoch"] = round(streams.train.num_rows / last.global_batch_size, 2)
        numbers["epochs"] = round(streams.train.epochs_before(config.train.steps), 2)
        if len(streams.sources) > 1:
            numbers["mixture"] = _mixture_lines(streams)
    elif config.model.vocab_size is not None:
        numbers["parameters"] = num_parameters(config.model, config.model.vocab_size, head=head_of(config))
    return numbers


def _is_there(corpus: str) -> bool:
    return bool(corpus) and ("://" in corpus or Path(corpus).is_dir())


def _mixture_lines(streams: Streams) -> list[str]:
    shares = streams.train.phases[0].token_shares.tolist()
    epochs = streams.train.source_epochs_before(streams.config.train.steps)
    return [
        f"{source.files.location}: {share:.2%} of the tokens, {count:.2f} epochs"
        for source, share, count in zip(streams.sources, shares, epochs, strict=True)
    ]
