"""The loss of a packed micro-batch as one function of tensors, made to be compiled whole.

Letters: R rows, S sequence length, P most predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from torch import Tensor, nn

from pipeline.models.head_loss import head_loss_of
from pipeline.models.packed import packed_head_loss
from pipeline.objectives.batch import Batch
from pipeline.objectives.terms import Term, loss_metrics


def packed_loss_sum(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    max_seqlen: int,
) -> Tensor:
    """Sum of the cross-entropies of a micro-batch, in fp32 (fp64 for an fp64 model).

    The caller divides by the predictions of the global batch; no mean is taken here, because a mean over a micro-batch
    would weigh its predictions by how many others happen to stand beside them.

    Args:
        model: from ``build_model``.
        input_ids, position_ids: int64 (R, S).
        cu_seqlens: int32, over the R * S flattened tokens.
        prediction_positions: int64 (P,), into the flattened tokens.
        labels: int64 (P,); -100 is not counted.
        max_seqlen: bound of the segment lengths, a constant of the run.
    """
    return packed_head_loss(
        model,
        input_ids.view(1, -1),
        position_ids.view(1, -1),
        cu_seqlens,
        max_seqlen,
        prediction_positions,
        labels,
    )


@dataclass(frozen=True)
class PackedLoss:
    """What an objective minimises."""

    terms: tuple[Term, ...]

    function: Callable[..., Any]
    """From (model, tensors, bound of the segment lengths) to the fp32 sum of the term, or a tuple of them."""

    tensors: tuple[str, ...]
    """Fields of :class:`Batch` that ``function`` takes, in this order."""

    shares: tuple[str, ...] = ()
    """What evaluations measure beside the terms, such as ``accuracy_mlm``."""

    measuring: Callable[..., Any] | None = None
    """As ``function``, without gradients: the sums of the terms, then for every share of how many things it holds, and
    how many there are, (2,). Training steps do not pay for it."""

    is_taught: bool = False
    """Whether another model computes beside the one that is trained."""

    @property
    def tasks(self) -> tuple[PackedLoss, ...]:
        """The losses of a run: this one."""
        return (self,)

    def has_teacher(self, task: int) -> bool:
        """Whether another model computes beside the task's."""
        return self.is_taught

    def metrics(self, sums: Sequence[float], counts: Sequence[int], task: int) -> dict[str, float | None]:
        """Of a step: see :func:`loss_metrics`."""
        return loss_metrics(self.terms, sums, counts)

    def held_out(self, metrics: Sequence[dict[str, float]]) -> dict[str, float]:
        """Of an evaluation: the metrics of the one task that there is."""
        (own,) = metrics
        return own

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """The sum of every term over a batch that is on the model's device, fp32 scalars (fp64 for an fp64 model)."""
        tensors = [getattr(batch, name) for name in self.tensors]
        return as_terms(self.function(model, *tensors, batch.max_seqlen))

    def measured(self, model: nn.Module, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """:meth:`sums`, and (2,) for every one of ``shares``."""
        if self.measuring is None:
            return self.sums(model, batch), ()
        tensors = [getattr(batch, name) for name in self.tensors]
        found = self.measuring(model, *tensors, batch.max_seqlen)
        return found[: len(self.terms)], found[len(self.terms) :]

    def with_functions(self, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Self:
        """The same with its functions changed, e.g. compiled."""
        measuring = None if self.measuring is None else change(self.measuring)
        return replace(self, function=change(self.function), measuring=measuring)


def as_terms(sums: Any) -> tuple[Tensor, ...]:
    """What a ``PackedLoss.function`` has returned, as a tuple."""
    return sums if isinstance(sums, tuple) else (sums,)


def with_hits(function: Callable[..., Any], model: nn.Module, *arguments: Any) -> tuple[Any, Tensor]:
    """What a function gives that computes the loss of the model's head once, and of how many labels the likeliest token
    is the true one, and of how many: int64 (2,)."""
    head = head_loss_of(model)
    head.counts_hits = True
    try:
        found = function(model, *arguments)
        assert head.hits is not None
        return found, head.hits
    finally:
        head.counts_hits, head.hits = False, None


def packed_loss_sum_and_hits(model: nn.Module, *arguments: Any) -> tuple[Tensor, Tensor]:
    """:func:`packed_loss_sum`, and the hits, int64 (2,)."""
    return with_hits(packed_loss_sum, model, *arguments)


VOCABULARY_TENSORS: Final = ("input_ids", "position_ids", "cu_seqlens", "prediction_positions", "labels")


def vocabulary_loss(name: str) -> PackedLoss:
    """The cross-entropy of predicted tokens as the only term."""
    terms, shares = (Term(name, "predictions"),), (f"accuracy_{name}",)
    return PackedLoss(terms, packed_loss_sum, VOCABULARY_TENSORS, shares, packed_loss_sum_and_hits)
