"""Held-out loss from sums. Pure.

The mean is over predictions, not over batches or ranks: every rank adds its loss sums and its counts, both are summed
over ranks, and one division follows. So the result is the same for any split of the rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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

    bits_per_token: float
    """The same mean in bits."""

    num_predictions: int
    """Of the first term and all ranks."""

    shares: dict[str, float] = field(default_factory=dict)
    """Accuracies and their like, in [0, 1], by the names of their metrics; what there was nothing of is left out."""

    @property
    def loss(self) -> float:
        """Weighted sum of the terms, in nats."""
        return self.losses["loss"]

    def metrics(self) -> dict[str, float]:
        """By their names."""
        own = {"perplexity": self.perplexity, "bits_per_token": self.bits_per_token}
        return {**self.losses, **own, **self.shares}


class HeldOutLoss:
    """Adds up one rank's batches.

    Args:
        terms: of the loss; the first one predicts tokens.
        shares: names of what is measured beside them.
    """

    def __init__(self, terms: Sequence[Term], shares: Sequence[str] = ()) -> None:
        self.terms = terms
        self.shares = shares
        self._held = [(0.0, 0.0)] * len(shares)
        self._sums: list[list[float]] = [[] for _ in terms]
        self._counts = [0] * len(terms)

    def add(self, sums: Sequence[float], counts: Sequence[int], held: Sequence[Sequence[float]] | None = None) -> None:
        """One batch: the sum (not the mean) of every term in nats, and of how many it is; and for every share how many
        things it holds, and how many there are."""
        if held is not None:
            pairs = zip(self._held, held, strict=True)
            self._held = [(before[0] + some, before[1] + every) for before, (some, every) in pairs]
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
        mine = [*map(math.fsum, self._sums), *map(float, self._counts), *itertools.chain.from_iterable(self._held)]
        both = mine if reduce is None else reduce(mine)
        num_terms = len(self.terms)
        sums, counts = both[:num_terms], [round(count) for count in both[num_terms : 2 * num_terms]]
        held = zip(self.shares, both[2 * num_terms :: 2], both[2 * num_terms + 1 :: 2], strict=True)
        if counts[0] <= 0:
            raise UserError(
                "held-out loss: there is nothing to predict in the validation rows. Build the corpus with a larger "
                "`shards.validation_share`, or raise `evaluation.rows`."
            )
        losses = {name: value for name, value in loss_metrics(self.terms, sums, counts).items() if value is not None}
        shares = {name: some / every for name, some, every in held if every}
        mean = sums[0] / counts[0]
        return HeldOut(losses, perplexity(mean), mean / math.log(2), counts[0], shares)
