"""The loss of a packed micro-batch as one function of tensors, made to be compiled whole.

Letters: R rows, S sequence length, P most predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.models.packed import packed_head_loss
from pipeline.objectives.batch import Batch


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


def batch_loss(model: nn.Module, batch: Batch, loss_function: Callable[..., Tensor] = packed_loss_sum) -> Tensor:
    """:func:`packed_loss_sum`, or what it was compiled to, of a batch that is on the model's device."""
    return loss_function(
        model,
        batch.input_ids,
        batch.position_ids,
        batch.cu_seqlens,
        batch.prediction_positions,
        batch.labels,
        batch.max_seqlen,
    )
