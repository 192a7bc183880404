"""Held-out loss: a mean over predictions that no split of the work changes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import pytest

from pipeline.base.errors import UserError
from pipeline.evaluate.heldout import HeldOut, HeldOutLoss
from pipeline.objectives.terms import Term

ONE = [Term("mlm", "predictions")]
TWO = [*ONE, Term("nsp", "pairs", weight=0.5)]


def held_out_loss(batches: Iterable[tuple[float, int]]) -> HeldOut:
    total = HeldOutLoss(ONE)
    for loss_sum, num_predictions in batches:
        total.add([loss_sum], [num_predictions])
    return total.result()


def test_the_mean_is_over_predictions_not_batches() -> None:
    result = held_out_loss([(10.0, 2), (3.0, 8)])
    assert result.loss == pytest.approx(1.3)
    assert result.perplexity == pytest.approx(math.exp(1.3))
    assert result.num_predictions == 10


def test_any_split_over_batches_and_ranks_gives_the_same() -> None:
    generator = random.Random(0)
    losses = [generator.uniform(0, 12) for _ in range(600)]
    expected = held_out_loss([(math.fsum(losses), len(losses))]).loss
    for world_size in (1, 2, 3, 7):
        ranks = [HeldOutLoss(ONE) for _ in range(world_size)]
        for number, start in enumerate(range(0, 600, 25)):
            ranks[number % world_size].add([math.fsum(losses[start : start + 25])], [25])
        mine: list[list[float]] = []

        def gather(numbers: Sequence[float], into: list[list[float]] = mine) -> Sequence[float]:
            into.append(list(numbers))
            return [1.0, 1.0]

        for rank in ranks:
            rank.result(gather)
        totals = [math.fsum(column) for column in zip(*mine, strict=True)]
        results = [rank.result(lambda _, totals=totals: totals) for rank in ranks]
        assert {result.num_predictions for result in results} == {600}
        assert all(result.loss == pytest.approx(expected, rel=1e-14) for result in results)


def test_terms_have_means_of_their_own() -> None:
    total = HeldOutLoss(TWO)
    total.add([10.0, 1.0], [4, 1])
    total.add([2.0, 2.0], [2, 3])
    result = total.result()
    assert result.metrics() == {
        "loss": 2.0 + 0.5 * 0.75, "loss_mlm": 2.0, "loss_nsp": 0.75, "perplexity": math.exp(2.0),
        "bits_per_token": 2.0 / math.log(2),
    }  # fmt: skip
    assert result.num_predictions == 6


def test_a_term_that_counts_nothing_is_left_out() -> None:
    total = HeldOutLoss(TWO)
    total.add([6.0, 0.0], [3, 0])
    expected = {"loss": 2.0, "loss_mlm": 2.0, "perplexity": math.exp(2.0), "bits_per_token": 2.0 / math.log(2)}
    assert total.result().metrics() == expected


def test_shares_are_of_all_ranks_and_left_out_where_there_is_nothing() -> None:
    total = HeldOutLoss(TWO, ("accuracy_mlm", "accuracy_nsp", "recall_rtd"))
    total.add([6.0, 0.0], [3, 0], [(1.0, 3.0), (2.0, 2.0), (0.0, 0.0)])
    total.add([6.0, 0.0], [5, 0], [(1.0, 5.0), (0.0, 0.0), (0.0, 0.0)])
    assert total.result().shares == {"accuracy_mlm": 0.25, "accuracy_nsp": 1.0}
    twice = total.result(
        lambda mine: [a + b for a, b in zip(mine, [0, 0, 8, 0, 6.0, 8.0, 0, 2.0, 0, 4.0], strict=True)]
    )
    assert twice.shares == {"accuracy_mlm": 0.5, "accuracy_nsp": 0.5, "recall_rtd": 0.0}
    assert twice.metrics().items() >= twice.shares.items()


def test_a_rank_without_rows_takes_part() -> None:
    assert HeldOutLoss(ONE).result(lambda mine: [mine[0] + 6.0, mine[1] + 3.0]).loss == 2.0


def test_the_order_of_batches_does_not_show() -> None:
    batches = [(10.0 ** random.Random(i).uniform(-8, 8), 1) for i in range(200)]
    assert held_out_loss(batches).loss == held_out_loss(batches[::-1]).loss


def test_nothing_to_predict_is_said() -> None:
    with pytest.raises(
        UserError, match=r"nothing to predict in the validation rows\. .*validation_share.*evaluation\.rows"
    ):
        held_out_loss([])


def test_not_a_number_and_huge_losses_stay_visible() -> None:
    assert math.isnan(held_out_loss([(math.nan, 1), (1.0, 1)]).loss)
    assert held_out_loss([(1e6, 1)]).perplexity == math.inf
