"""Contradictions of what is done to rows: which tokens are masked. Each check yields every problem."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.derived import row_objective
from pipeline.config.ranges import at_least, at_most
from pipeline.config.run import RunConfig

MAX_MASK_COPIES = 1_000_000
"""No run has so many epochs: more is a mistake."""


def row_problems(config: RunConfig) -> Iterator[str]:
    """Problems of masks that stay with their documents."""
    yield from _mask_copies_problems(config)


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
