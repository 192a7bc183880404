"""Replaced-token detection (Clark et al. 2020, "ELECTRA", section 2).

A generator predicts masked tokens; at every predicted position its token, drawn from its distribution, takes the place
of the mask, and a discriminator says of every token whether it was replaced. A token that the generator got right
counts as not replaced.

Letters: R rows, S sequence length, P places for predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipeline.base.keyed import hashes, key
from pipeline.config.objective import ObjectiveConfig
from pipeline.data.rows import RowFormat, Rows
from pipeline.models.electra import discriminator_logits, generator_logits, replaced_tokens
from pipeline.models.head_loss import IGNORED, hits_of
from pipeline.objectives.batch import Batch
from pipeline.objectives.loss import VOCABULARY_TENSORS, PackedLoss
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.objective import Vocabulary
from pipeline.objectives.terms import Term

_SHARES: Final = ("accuracy_mlm", "accuracy_rtd", "recall_rtd", "precision_rtd", "replaced_rtd")
"""Of the predicted tokens those that the generator has right; of all tokens those judged right; of the replaced tokens
those found; of those called replaced the replaced ones; of all tokens the replaced ones: 1 minus this is the accuracy
of who calls none replaced."""

_DRAW: Final = int.from_bytes(b"DRAW", "big")


def packed_rtd_loss_sums(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    uniforms: Tensor,
    is_real: Tensor,
    max_seqlen: int,
) -> tuple[Tensor, Tensor]:
    """Sums of the generator's cross-entropies and of the discriminator's, each in fp32 (fp64 for an fp64 model).

    Args:
        model: from ``build_replaced_token_model``.
        input_ids, position_ids: int64 (R, S).
        cu_seqlens: int32, over the R * S flattened tokens.
        prediction_positions: int64 (P,), into the flattened tokens.
        labels: int64 (P,); -100 is not counted.
        uniforms: fp32 (P,), in [0, 1): they draw the generator's tokens.
        is_real: bool (R, S), false in padding.
        max_seqlen: bound of the segment lengths, a constant of the run.
    """
    generator_loss, _, scores, was_replaced = _judged(
        model, input_ids, position_ids, cu_seqlens, prediction_positions, labels, uniforms, max_seqlen
    )
    return generator_loss, _judging_loss(scores, was_replaced, is_real)


def packed_rtd_loss_and_shares(model: Any, *arguments: Any) -> tuple[Tensor, ...]:
    """:func:`packed_rtd_loss_sums`, and of how many things each of :data:`_SHARES` holds, and how many there are, each
    int64 (2,)."""
    input_ids, position_ids, cu_seqlens, prediction_positions, labels, uniforms, is_real, max_seqlen = arguments
    generator_loss, logits, scores, was_replaced = _judged(
        model, input_ids, position_ids, cu_seqlens, prediction_positions, labels, uniforms, max_seqlen
    )
    real = is_real.flatten()
    replaced, flagged = was_replaced & real, (scores > 0) & real
    found, right = replaced & flagged, (replaced == flagged) & real
    shares = ((right, real), (found, replaced), (found, flagged), (replaced, real))
    return (
        generator_loss,
        _judging_loss(scores, was_replaced, is_real),
        hits_of(logits.argmax(-1), labels),
        *(torch.stack([some.sum(), every.sum()]) for some, every in shares),
    )


def _judging_loss(scores: Tensor, was_replaced: Tensor, is_real: Tensor) -> Tensor:
    target, weight = (mask.to(scores.dtype) for mask in (was_replaced, is_real.flatten()))
    return binary_cross_entropy_with_logits(scores, target, weight, reduction="sum")


def _judged(
    model: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    uniforms: Tensor,
    max_seqlen: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of the generator's cross-entropies, its logits (P, V), and for all R*S tokens how surely the
    discriminator says that they were replaced, as logits, and whether they were."""
    ids, positions = input_ids.view(1, -1), position_ids.view(1, -1)
    logits = generator_logits(model, ids, positions, cu_seqlens, max_seqlen, prediction_positions)  # P V
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    generator_loss = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    predicted = labels != IGNORED  # P
    original = torch.where(predicted, labels, ids[0].index_select(0, prediction_positions))
    drawn = torch.where(predicted, replaced_tokens(logits.detach(), uniforms), original)
    true_ids = ids[0].index_copy(0, prediction_positions, original)  # R*S
    seen = ids[0].index_copy(0, prediction_positions, drawn)
    scores = discriminator_logits(model, seen[None], positions, cu_seqlens, max_seqlen)  # R*S
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return generator_loss, logits, scores, seen != true_ids


class ReplacedTokenDetection(MaskedLanguageModel):
    """Tokens are masked as in masked language modelling; what the generator makes of them is judged."""

    name = "rtd"
    loss = PackedLoss(
        (Term("mlm", "predictions"), Term("rtd", "real_tokens", weight=50.0)),
        packed_rtd_loss_sums,
        (*VOCABULARY_TENSORS, "uniforms", "is_real"),
        _SHARES,
        packed_rtd_loss_and_shares,
    )

    marks_padding = True
    draw_key: int = 0

    @classmethod
    def of(
        cls, config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
    ) -> Self:
        made = super().of(config, vocabulary, row_format, seed, segments_per_row)
        made.draw_key = key(seed, _DRAW)
        return made

    def prepare_steps(
        self, rows: Rows, num_micro_batches: int, steps: Sequence[int], digested: Collection[int] = ()
    ) -> list[list[Batch]]:
        batches = super().prepare_steps(rows, num_micro_batches, steps, digested)
        return [
            [replace(batch, uniforms=torch.from_numpy(uniforms_of(batch, self.draw_key))) for batch in of_step]
            for of_step in batches
        ]


def uniforms_of(batch: Batch, draw_key: int) -> NDArray[np.float32]:
    """A number in [0, 1) for every prediction, by run-wide row number and place in the row, fp32 (P,)."""
    row, place = np.divmod(batch.prediction_positions.numpy(), batch.input_ids.shape[1])
    names = (batch.row_numbers.numpy()[row] << 16) + place
    return ((hashes(draw_key, names) >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
