"""Packed or padded: what a run's model is, in words, and whether its rows suit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pipeline.base.errors import UserError
from pipeline.config.attention import reasons_against_flash
from pipeline.config.derived import head_of
from pipeline.config.hugging_face import AUTO, PADDED_FAMILIES, max_positions, one_text_problems, positions_key
from pipeline.config.run import ModelConfig, RunConfig
from pipeline.config.stages import stages_of
from pipeline.models.auto import attention_shape, auto_config, family_entry, known_entry


def form_of(config: RunConfig) -> str | None:
    """How the model of a run reads its rows, and why not packed if it does not; None for the families that always are.

    Raises:
        UserError: see :func:`pipeline.models.auto.family_entry`.
    """
    if config.model.family not in (AUTO, *PADDED_FAMILIES):
        return None
    entry = family_entry(config.model, head_of(config))
    if entry.padded is not None:
        return f"{entry.model_class}, padded: {entry.padded}"
    return f"{entry.model_class}, packed: every text of a row comes out as it does alone"


def is_padded(config: RunConfig) -> bool:
    """Whether the model of a run reads padded rows."""
    return family_entry(config.model, head_of(config)).padded is not None


def reasons_for_slow_attention(config: RunConfig) -> list[str]:
    """Why flash attention cannot run on CUDA for a packed model of family ``auto``, whose shape its config holds."""
    if config.model.family != AUTO or is_padded(config):
        return []
    hf = auto_config(config.model, head_of(config), config.model.vocab_size or _ANY_ROWS, {})
    known = attention_shape(hf)
    if known is None:
        return []
    heads, width = known
    dropout = max(float(getattr(hf, name, None) or 0.0) for name in _DROPOUT_KEYS)
    shape = ModelConfig(hidden_size=width * heads, num_heads=heads, attention_dropout=dropout)
    return [f"model.config, read as ours: {reason}" for reason in reasons_against_flash(shape, "bf16")]


_ANY_ROWS: Final = 64
_DROPOUT_KEYS: Final = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "attention_dropout_prob")


def check_counts(config: RunConfig) -> None:
    """Count the parameters and FLOPs of a model of family ``auto``, as the start of a run does.

    Raises:
        UserError: the class cannot be made of its config.
    """
    from pipeline.models.plain_flops import plain_counts

    head = head_of(config)
    if config.model.family == AUTO and known_entry(config.model, head) is None:
        plain_counts(config.model, head, config.model.vocab_size or _ANY_ROWS)


def check_form(config: RunConfig, special_ids: Mapping[str, int | None]) -> None:
    """Refuse rows that the model of a run does not take.

    Args:
        special_ids: of the corpus; empty where it is not known.

    Raises:
        UserError: with every problem; or see :func:`pipeline.models.auto.family_entry`.
    """
    problems = list(_problems(config, special_ids))
    if problems:
        raise UserError("\n".join(problems))


def _problems(config: RunConfig, special_ids: Mapping[str, int | None]) -> Iterator[str]:
    if config.model.family != AUTO:
        return  # the config's own checks know all of it
    entry = family_entry(config.model, head_of(config))
    if entry.padded is not None:
        yield from one_text_problems(config, entry.padded)
    yield from _position_problems(config, entry.model_class, (special_ids.get("pad") or 0))


def _position_problems(config: RunConfig, name: str, pad_id: int) -> Iterator[str]:
    """Rows longer than the tables of the class, or than what it takes where the config does not say."""
    from pipeline.models.position_tables import table_positions

    head, longest = head_of(config), max(stage.sequence_length for stage in stages_of(config).all)
    default = positions_key(vars(auto_config(config.model, head, _ANY_ROWS, {})))
    in_table = table_positions(config.model, head, pad_id)
    if in_table is not None and longest > in_table[0]:
        positions, before = in_table
        raised = f", or set {default[0]} to {longest + default[1] - positions} in model.config" if default else ""
        why = f": the first {before} rows of its table are none" if before else ""
        yield (
            f"data.sequence_length: {longest} is longer than the {positions} positions that {name} has left{why}. "
            f"Shorten it{raised}."
        )
    elif max_positions(config.model) is None and default is not None and longest > default[1]:
        yield (
            f"data.sequence_length: {longest} is longer than the {default[1]} positions that {name} has where the "
            f"config names none. Shorten it, or set {default[0]} to {longest} in model.config."
        )
