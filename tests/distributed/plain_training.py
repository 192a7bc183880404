"""Training as a loop that knows no packing, no micro-batch and no rank: the stock class on one segment at a time, one
mean a term over the whole global batch, clipping, plain gradient descent, all in fp64.

Letters: R rows, S sequence length, n tokens of a segment, V vocabulary, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipeline.config.derived import head_of
from pipeline.config.loading import load_run_config
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head, ObjectiveConfig
from pipeline.config.run import RunConfig
from pipeline.data.rows import NO_PAIR, Rows
from pipeline.models.build import hf_config
from pipeline.models.electra import replaced_tokens
from pipeline.models.families import FAMILIES, generator_config, model_class_name
from pipeline.objectives.objective import Objective
from pipeline.optim.schedules import learning_rate
from pipeline.train.setup import make_model
from pipeline.train.streams import Streams, open_streams

Steps = list[dict[str, np.ndarray]]
"""Gradients before clipping by name, fp64, a step each."""


def plain_training(config_path: str, overrides: list[str]) -> tuple[Steps, list[float], list[float], Any]:
    """Gradients, losses, norms, last weights."""
    config = load_run_config(config_path, overrides)
    streams = open_streams(config)
    steps = config.train.steps
    assert streams.train.num_rows < steps * config.train.global_batch_size, "no epoch ends within the run"
    model, teacher = stock_model(config, streams), stock_teacher(config)
    objectives = streams.objectives(config.seed, config.data.sequence_length)
    gradients, losses, norms = [], [], []
    for step in range(steps):
        objective = objectives.of_step(step + 1)
        task = config.objective.tasks[objectives.tasks.index(objective)]
        loss = plain_loss(task, model, teacher, objective, streams.train.rows(step))
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for parameter in model.parameters():  # of a head that the step's objective does not use
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append({name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()})
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), config.train.gradient_clip_norm).item())
        rate = learning_rate(step, config.schedule, config.optimizer, steps)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
    return gradients, losses, norms, {name: p.detach().numpy() for name, p in model.named_parameters()}


def stock_model(config: RunConfig, streams: Streams) -> Any:
    """The stock class, or both of ELECTRA's with the embeddings of one, with the initial weights of the run, fp64."""
    facts: dict[str, Any] = {"vocab_size": streams.manifest.vocab_size, "special_ids": streams.manifest.special_ids}

    def made(shape: ModelConfig, head: Head) -> Any:
        model_class = getattr(transformers, model_class_name(shape, head))
        return model_class(hf_config(shape, **facts, head=head)).double()

    if config.objective.name == "rtd":
        discriminator = made(config.model, "discriminator")
        generator = made(generator_config(config.model), "tokens")
        generator.electra.embeddings = discriminator.electra.embeddings
        generator.tie_weights()
        model: Any = nn.ModuleDict({"discriminator": discriminator, "generator": generator})
    else:
        model = made(config.model, head_of(config))
    model.load_state_dict(make_model(config, streams).state_dict())
    return model


def stock_teacher(config: RunConfig) -> Any:
    """The teacher as transformers reads it, fp64; None where there is none."""
    if config.objective.teacher is None:
        return None
    kind = "AutoModelForCausalLM" if config.model.family == "gpt2" else "AutoModelForMaskedLM"
    teacher = getattr(transformers, kind).from_pretrained(config.objective.teacher)
    return teacher.double().eval().requires_grad_(False)


@dataclass(frozen=True)
class Segment:
    """One segment by itself."""

    input_ids: Tensor
    """What the model reads, (1, n); of an encoder with a decoder as many as the noise has left."""

    labels: Tensor
    """(n,); -100 is not counted."""

    token_types: Tensor | None
    """Of rows of pairs: (1, n)."""

    pair_label: Tensor
    """Of rows of pairs: (1,)."""

    uniforms: Tensor
    """What draws the generator's tokens, at their places, (n,)."""


def segments_of(objective: Objective, rows: Rows) -> Iterator[Segment]:
    """The segments of rows, as the objective corrupts them."""
    input_ids, labels = (torch.from_numpy(array) for array in objective.labels_of(rows))
    (batch,) = objective.prepare(rows, 1)
    uniforms = torch.zeros(labels.shape)
    if batch.uniforms is not None:
        uniforms.view(-1)[batch.prediction_positions] = batch.uniforms
    noisy_ends = {}  # every noisy segment begins where the clean one does
    if batch.decoder_input_ids is not None:
        input_ids = batch.input_ids
        bounds = batch.cu_seqlens.tolist()
        noisy_ends = {begin: end for begin, end in zip(bounds[:-1:2], bounds[1::2], strict=True) if end > begin}
    for number, (row, start, length) in enumerate(
        zip(rows.segment_row.tolist(), rows.segment_start.tolist(), rows.segment_length.tolist(), strict=True)
    ):
        first, part = row * labels.shape[1] + start, slice(start, start + length)
        read = slice(start, start + noisy_ends[first] - first) if noisy_ends else part
        pairs = rows.second_start is not None
        yield Segment(
            input_ids[row, read][None],
            labels[row, part],
            (torch.arange(part.start, part.stop) >= int(rows.second_start[number])).long()[None] if pairs else None,
            torch.tensor([int(rows.pair_label[number]) if pairs else NO_PAIR]),
            uniforms[row, part],
        )


def plain_loss(settings: ObjectiveConfig, model: Any, teacher: Any, objective: Objective, rows: Rows) -> Tensor:
    """The weighted sum of the means of the terms over the rows."""
    totals = [torch.zeros((), dtype=torch.float64)] * 3
    num_predictions = num_pairs = num_tokens = 0
    of_segment = _SUMS.get(settings.name, _tokens)
    for segment in segments_of(objective, rows):
        sums = of_segment(settings, model, teacher, segment)
        totals = [total + own for total, own in zip(totals, [*sums, 0, 0], strict=False)]
        num_predictions += int((segment.labels != -100).sum())
        num_pairs += int((segment.pair_label != NO_PAIR).sum())
        num_tokens += len(segment.labels)
    second = {"rtd": settings.discriminator_weight / num_tokens, "distil": settings.soft_weight / num_predictions}
    factors = [
        (settings.hard_weight if settings.name == "distil" else 1.0) / num_predictions,
        second.get(settings.name, 1 / max(num_pairs, 1)),
        settings.cosine_weight / num_predictions,
    ]
    first, *others = (factor * total for factor, total in zip(factors, totals, strict=True))
    return sum(others, start=first)


def _tokens(settings: ObjectiveConfig, model: Any, teacher: Any, segment: Segment) -> list[Tensor]:
    return [cross_entropy(model(segment.input_ids)[0][0], segment.labels, reduction="sum")]


def _pairs(settings: ObjectiveConfig, model: Any, teacher: Any, segment: Segment) -> list[Tensor]:
    outputs = model(segment.input_ids, token_type_ids=segment.token_types)
    pair_head = FAMILIES[model.config.model_type].pair_head
    assert pair_head is not None
    of_pair = cross_entropy(outputs[pair_head.logits], segment.pair_label, reduction="sum")
    return [cross_entropy(outputs.prediction_logits[0], segment.labels, reduction="sum"), of_pair]


def _noisy(settings: ObjectiveConfig, model: Any, teacher: Any, segment: Segment) -> list[Tensor]:
    """The stock class makes what the decoder reads of the labels."""
    logits = model(input_ids=segment.input_ids, labels=segment.labels[None]).logits[0]
    return [cross_entropy(logits, segment.labels, reduction="sum")]


def _replaced(settings: ObjectiveConfig, model: Any, teacher: Any, segment: Segment) -> list[Tensor]:
    logits = model["generator"](segment.input_ids).logits[0]  # n V
    predicted = segment.labels != -100
    text = torch.where(predicted, segment.labels, segment.input_ids[0])
    seen = torch.where(predicted, replaced_tokens(logits.detach(), segment.uniforms), text)
    scores = model["discriminator"](seen[None]).logits[0]
    judged = binary_cross_entropy_with_logits(scores, (seen != text).double(), reduction="sum")
    return [cross_entropy(logits, segment.labels, reduction="sum"), judged]


def _taught(settings: ObjectiveConfig, model: Any, teacher: Any, segment: Segment) -> list[Tensor]:
    predicted = segment.labels != -100
    ours, theirs = (one(segment.input_ids, output_hidden_states=True) for one in (model, teacher))
    logits, taught = (one.logits[0] for one in (ours, theirs))  # n V
    p, q = ((one / settings.temperature).softmax(-1) for one in (taught, logits))
    hidden, their_hidden = (one.hidden_states[-1][0] for one in (ours, theirs))  # n E
    cosine = (hidden * their_hidden).sum(-1) / hidden.norm(dim=-1) / their_hidden.norm(dim=-1)
    return [
        cross_entropy(logits, segment.labels, reduction="sum"),
        settings.temperature**2 * (p * (p / q).log()).sum(-1)[predicted].sum(),
        (1 - cosine)[predicted].sum(),
    ]


_SUMS: dict[str, Callable[[ObjectiveConfig, Any, Any, Segment], list[Tensor]]] = {
    "mlm+nsp": _pairs,
    "mlm+sop": _pairs,
    "denoise": _noisy,
    "rtd": _replaced,
    "distil": _taught,
}
"""By objective the sums of its terms over a segment."""
