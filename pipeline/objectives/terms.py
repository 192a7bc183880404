"""The terms of a loss: means over what each counts, added up with weights.

A micro-batch gives the sum of every term; what a mean divides by is counted over the whole global batch, because a mean
over a micro-batch would weigh a prediction by how many others happen to stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One term of a loss."""

    name: str
    """As in the metric ``loss_NAME``."""

    counts: str
    """What its mean is over: ``predictions``, ``pairs`` or ``real_tokens``, as in ``Batch.num_*`` and ``window_*``."""

    weight: float = 1.0

    task: int = 0
    """Number of the objective in a mixture whose term it is."""


def weighted_loss(terms: Sequence[Term], sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """The loss from the sums of its terms over the global batch, in nats; None where no term counted anything: a mean
    over nothing is no number, and 0 would be the best loss of all."""
    counted = [(term, total, count) for term, total, count in zip(terms, sums, counts, strict=True) if count]
    if not counted:
        return None
    first, *others = (term.weight * (total / count) for term, total, count in counted)
    return sum(others, start=first)


def loss_metrics(terms: Sequence[Term], sums: Sequence[float], counts: Sequence[int]) -> dict[str, float | None]:
    """``loss``, and where it has several terms the mean of each, without its weight, as ``loss_NAME``; None where it
    counted nothing."""
    metrics = {"loss": weighted_loss(terms, sums, counts)}
    if len(terms) > 1:
        for term, total, count in zip(terms, sums, counts, strict=True):
            metrics[f"loss_{term.name}"] = total / count if count else None
    return metrics
