"""Contradictions of what is done to rows: masks that stay, context, reverse complements. Each check yields all it
finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.config.derived import row_objective
from pipeline.config.ranges import at_least, at_most, share
from pipeline.config.run import Packing, RunConfig

MAX_MASK_COPIES = 1_000_000
"""No run has so many epochs: more is a mistake."""

CONTEXT_PACKINGS: Final[tuple[Packing, ...]] = ("best_fit", "one_document")
"""Packings that cut a document by itself, so that a piece can begin with the end of the one before."""


def row_problems(config: RunConfig) -> Iterator[str]:
    """Problems of masks that stay with their documents, of context, and of the other strand of DNA."""
    yield from _mask_copies_problems(config)
    yield from _context_problems(config)
    yield from _reverse_complement_problems(config)


def _mask_copies_problems(config: RunConfig) -> Iterator[str]:
    objective = config.objective
    if objective.mask_copies is None:
        return
    if row_objective(config).name in ("clm", "denoise"):
        family = "" if objective.name in ("clm", "denoise") else f" of family `{config.model.family}`"
        yield f"objective.mask_copies: `{objective.name}`{family} has no masks that could be kept; leave it out."
    yield from at_least(1, objective__mask_copies=objective.mask_copies)
    yield from at_most(MAX_MASK_COPIES, objective__mask_copies=objective.mask_copies)
    if objective.masking == "span":
        yield (
            "objective.mask_copies: spans are drawn for rows, and rows change every epoch; set objective.masking to "
            "`token` or `whole_word`, or leave objective.mask_copies out."
        )


def most_context_tokens(sequence_length: int) -> int:
    """Beside the context a row has room for a new token and the end of the text."""
    return sequence_length - 2


def _context_problems(config: RunConfig) -> Iterator[str]:
    context = config.data.context_tokens
    yield from at_least(0, data__context_tokens=context)
    if context <= 0:
        return
    if row_objective(config).name != "clm":
        family = f" of family `{config.model.family}`" if config.objective.name == "distil" else ""
        yield (
            f"data.context_tokens: {context} has a meaning for next-token prediction only, and the objective is "
            f"`{config.objective.name}`{family}; leave it out."
        )
    if config.data.packing not in CONTEXT_PACKINGS:
        yield (
            f"data.context_tokens: {context} does not go with data.packing `{config.data.packing}`; use "
            f"{' or '.join(f'`{name}`' for name in CONTEXT_PACKINGS)}, or leave it out."
        )
    lengths = [stage.sequence_length or config.data.sequence_length for stage in config.train.stages]
    shortest = min(lengths or [config.data.sequence_length])
    if context > most_context_tokens(shortest):
        yield (
            f"data.context_tokens: {context} leaves no room for new text in rows of {shortest} tokens; lower it to "
            f"{max(0, most_context_tokens(shortest))} or less (a quarter to a half of a row is usual)."
        )


def _reverse_complement_problems(config: RunConfig) -> Iterator[str]:
    data = config.data
    yield from share(data__reverse_complement=data.reverse_complement)
    if not 0 < data.reverse_complement <= 1:
        return
    for name, given, why in (
        (
            "data.packing",
            data.packing if data.packing.startswith("pairs") else None,
            "the parts of a pair follow each other",
        ),
        ("objective.mask_copies", config.objective.mask_copies, "masks that stay belong to tokens in their order"),
        ("data.context_tokens", data.context_tokens or None, "the context of a piece comes before it"),
    ):
        if given is not None:
            yield (
                f"data.reverse_complement: {data.reverse_complement} does not go with {name} {given}: {why}, and a "
                "reverse complement turns the order round; leave one of them out."
            )
