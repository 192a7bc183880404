"""Held-out loss from sums. Pure.

The mean is over predictions, not over batches or ranks: every rank adds its loss sums and its counts, both are summed
over ranks, and one division follows. So the result is the same for any split of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.base.errors import UserError
from pipeline.monitor.meters import perplexity

Reduce = Callable[[Sequence[float]], Sequence[float]]
"""Sums each number over all ranks; given the same numbers in the same order on every rank."""


@dataclass(frozen=True)
class HeldOut:
    """A held-out evaluation."""

    loss: float
    """Mean cross-entropy a prediction, in nats."""

    perplexity: float
    """exp(loss)."""

    num_predictions: int
    """Predictions of all ranks."""


@dataclass
class HeldOutLoss:
    """Adds up one rank's batches."""

    _loss_sums: list[float] = field(default_factory=list)
    _num_predictions: int = 0

    def add(self, loss_sum: float, num_predictions: int) -> None:
        """One batch: the sum (not the mean) of its cross-entropies in nats, and how many they are."""
        self._loss_sums.append(float(loss_sum))
        self._num_predictions += int(num_predictions)

    def result(self, reduce: Reduce | None = None) -> HeldOut:
        """The evaluation over all ranks; every rank calls it and gets the same.

        Args:
            reduce: sums numbers over ranks; None with one rank.

        Raises:
            UserError: no rank had a prediction.
        """
        # fsum is exact, so the order of the batches does not show in the last digits.
        mine = [math.fsum(self._loss_sums), float(self._num_predictions)]
        loss_sum, count = mine if reduce is None else reduce(mine)
        if count <= 0:
            raise UserError(
                "held-out loss: there is nothing to predict in the validation rows. Build the corpus with a larger "
                "`shards.validation_share`, or raise `evaluation.rows`."
            )
        loss = loss_sum / count
        return HeldOut(loss, perplexity(loss), round(count))
