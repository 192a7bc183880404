"""Held-out loss from sums. Pure.

The mean is over predictions, not over batches or ranks: every rank adds its loss sums and its counts, both are summed
over ranks, and one division follows. So the result is the same for any split of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.base.errors import UserError
from pipeline.monitor.meters import perplexity
from pipeline.objectives.terms import Term, loss_metrics

Reduce = Callable[[Sequence[float]], Sequence[float]]
"""Sums each number over all ranks; given the same numbers in the same order on every rank."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out evaluation."""

    losses: dict[str, float]
    """The loss in nats, and its terms where it has several, by the names of their metrics."""

    perplexity: float
    """exp of the mean of the first term, which predicts tokens."""

    num_predictions: int
    """Of the first term and all ranks."""

    @property
    def loss(self) -> float:
        """Weighted sum of the terms, in nats."""
        return self.losses["loss"]

    def metrics(self) -> dict[str, float]:
        """By their names."""
        return {**self.losses, "perplexity": self.perplexity}


class HeldOutLoss:
    """Adds up one rank's batches.

    Args:
        terms: of the loss; the first one predicts tokens.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms
        self._sums: list[list[float]] = [[] for _ in terms]
        self._counts = [0] * len(terms)

    def add(self, sums: Sequence[float], counts: Sequence[int]) -> None:
        """One batch: the sum (not the mean) of every term in nats, and of how many it is."""
        for term, (total, count) in enumerate(zip(sums, counts, strict=True)):
            self._sums[term].append(float(total))
            self._counts[term] += int(count)

    def result(self, reduce: Reduce | None = None) -> HeldOut:
        """The evaluation over all ranks; every rank calls it and gets the same.

        Args:
            reduce: sums numbers over ranks; None with one rank.

        Raises:
            UserError: no rank had a token to predict.
        """
        # fsum is exact, so the order of the batches does not show in the last digits.
        mine = [*map(math.fsum, self._sums), *map(float, self._counts)]
        both = mine if reduce is None else reduce(mine)
        sums, counts = both[: len(self.terms)], [round(count) for count in both[len(self.terms) :]]
        if counts[0] <= 0:
            raise UserError(
                "held-out loss: there is nothing to predict in the validation rows. Build the corpus with a larger "
                "`shards.validation_share`, or raise `evaluation.rows`."
            )
        losses = {name: value for name, value in loss_metrics(self.terms, sums, counts).items() if value is not None}
        return HeldOut(losses, perplexity(sums[0] / counts[0]), counts[0])
