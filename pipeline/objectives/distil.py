"""Distillation (Sanh et al. 2019, "DistilBERT", section 3): a model learns what another one says of the same rows.

Three terms at the predicted positions, which are those of masked or causal language modelling: the cross-entropy of
the true tokens; the divergence from the teacher's distribution, both at a temperature (Hinton et al. 2015); and one
minus the cosine between the last hidden states. The paper takes the last two at every token.

Letters: R rows, S sequence length, P places for predictions, V vocabulary, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax

from pipeline.config.objective import ObjectiveConfig, ObjectiveName
from pipeline.models.head_loss import IGNORED, hits_of
from pipeline.models.packed import packed_logits_and_hidden
from pipeline.objectives.loss import VOCABULARY_TENSORS, PackedLoss
from pipeline.objectives.terms import Term


def distillation_loss(teacher: nn.Module, config: ObjectiveConfig, hard: ObjectiveName) -> PackedLoss:
    """The loss of a student; terms of weight 0 but the first are not computed.

    Args:
        teacher: from ``read_teacher``, on the device of the student; it is no part of what is trained.
        hard: name of the term for the true tokens.
    """
    weights = {hard: config.hard_weight, "soft": config.soft_weight, "cosine": config.cosine_weight}
    terms = tuple(Term(name, "predictions", weight) for name, weight in weights.items() if weight or name == hard)
    kept = [name in {term.name for term in terms} for name in weights]

    def sums(model: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
        return chosen(distillation_sums(model, teacher, config.temperature, *arguments))

    def chosen(found: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(one for one, is_kept in zip(found, kept, strict=True) if is_kept)

    def sums_and_hits(model: nn.Module, *arguments: Any) -> tuple[Tensor, ...]:
        *found, logits = distillation_sums_and_logits(model, teacher, config.temperature, *arguments)
        labels = arguments[VOCABULARY_TENSORS.index("labels")]
        return (*chosen(found), hits_of(logits.argmax(-1), labels))

    return PackedLoss(terms, sums, VOCABULARY_TENSORS, (f"accuracy_{hard}",), sums_and_hits, is_taught=True)


def distillation_sums(student: nn.Module, teacher: nn.Module, temperature: float, *arguments: Any) -> Any:
    """The sums of :func:`distillation_sums_and_logits`."""
    return distillation_sums_and_logits(student, teacher, temperature, *arguments)[:3]


def distillation_sums_and_logits(
    student: nn.Module,
    teacher: nn.Module,
    temperature: float,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    prediction_positions: Tensor,
    labels: Tensor,
    max_seqlen: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the predictions of a micro-batch, fp32 (fp64 for an fp64 student): cross-entropy, divergence times the
    temperature squared, which keeps the size of its gradient, and one minus the cosine. Last the student's
    logits (P, V).

    Args:
        student, teacher: from ``build_model`` and ``read_teacher``, of one vocabulary.
        input_ids, position_ids: int64 (R, S).
        cu_seqlens: int32, over the R * S flattened tokens.
        prediction_positions: int64 (P,), into the flattened tokens.
        labels: int64 (P,); -100 is not counted.
        max_seqlen: bound of the segment lengths, a constant of the run.
    """
    rows = (input_ids.view(1, -1), position_ids.view(1, -1), cu_seqlens, max_seqlen, prediction_positions)
    with torch.no_grad():
        taught, their_hidden = packed_logits_and_hidden(teacher, *rows)  # P V, P E
    logits, hidden = packed_logits_and_hidden(student, *rows)
    exact = torch.promote_types(logits.dtype, torch.float32)
    logits, taught, hidden, their_hidden = (one.to(exact) for one in (logits, taught, hidden, their_hidden))
    counted = (labels != IGNORED).to(exact)  # P
    ours, theirs = (log_softmax(one / temperature, -1) for one in (logits, taught))  # P V
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)  # P
    if hidden.shape == their_hidden.shape:
        apart = 1 - cosine_similarity(hidden, their_hidden, dim=-1)  # P
    else:  # refused before the start, unless its weight is 0
        apart = torch.zeros_like(counted)
    return (
        cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"),
        temperature**2 * (divergence * counted).sum(),
        (apart * counted).sum(),
        logits,
    )
