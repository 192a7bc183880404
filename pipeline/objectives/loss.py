"""The loss of a packed micro-batch as one function of tensors, made to be compiled whole.

Letters: R rows, S sequence length, P most predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from pipeline.models.packed import packed_head_loss
from pipeline.objectives.batch import Batch
from pipeline.objectives.terms import Term


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

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """The sum of every term over a batch that is on the model's device, fp32 scalars (fp64 for an fp64 model)."""
        tensors = [getattr(batch, name) for name in self.tensors]
        return as_terms(self.function(model, *tensors, batch.max_seqlen))


def as_terms(sums: Any) -> tuple[Tensor, ...]:
    """What a ``PackedLoss.function`` has returned, as a tuple."""
    return sums if isinstance(sums, tuple) else (sums,)


VOCABULARY_TENSORS: Final = ("input_ids", "position_ids", "cu_seqlens", "prediction_positions", "labels")


def vocabulary_loss(name: str) -> PackedLoss:
    """The cross-entropy of predicted tokens as the only term."""
    return PackedLoss((Term(name, "predictions"),), packed_loss_sum, VOCABULARY_TENSORS)
