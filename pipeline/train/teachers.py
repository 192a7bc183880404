"""What a run minimises, and the teacher of one that distils: read, compared with the run, put beside the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pipeline.base.errors import UserError
from pipeline.config.derived import row_objective
from pipeline.config.model import ModelConfig
from pipeline.config.objective import ObjectiveConfig
from pipeline.config.run import RunConfig
from pipeline.models.families import FAMILIES
from pipeline.models.forms import is_padded
from pipeline.models.shapes import model_config_of
from pipeline.models.teacher import read_teacher, teacher_type
from pipeline.objectives.distil import distillation_loss
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.mixture_loss import MixtureLoss
from pipeline.objectives.registry import packed_loss
from pipeline.train.start_weights import read_vocabulary, tokenizer_difference
from pipeline.train.streams import Streams


def make_loss(config: RunConfig, streams: Streams, device: torch.device) -> PackedLoss | MixtureLoss:
    """What a run minimises. On CUDA a teacher computes in bf16 where the run does not in fp32.

    Raises:
        UserError: the teacher cannot be read, or has another tokenizer, vocabulary, kind or width.
    """
    teacher = None if teacher_task(config) is None else checked_teacher(config, streams, device)
    losses = tuple(
        packed_loss(task, is_padded(config))
        if teacher is None or task.name != "distil"
        else distillation_loss(teacher, task, row_objective(config, task).name)
        for task in config.objective.tasks
    )
    mixture = config.objective.mixture
    if not mixture:
        return losses[0]
    return MixtureLoss(losses, tuple(task.shown_label for task in mixture), tuple(task.weight for task in mixture))


def teacher_task(config: RunConfig) -> ObjectiveConfig | None:
    """The first objective of a run that has a teacher; all such have the same."""
    return next((task for task in config.objective.tasks if task.name == "distil"), None)


def checked_teacher(config: RunConfig, streams: Streams, device: torch.device) -> nn.Module:
    """The teacher on the device of the student; raises as :func:`make_loss`."""
    folder = _teacher_folder(config)
    assert folder is not None
    where = f"objective.teacher: {folder}"
    half = device.type == "cuda" and config.train.precision != "fp32"
    teacher = read_teacher(folder, torch.bfloat16 if half else torch.float32)
    shape = model_config_of(teacher.config.to_dict())
    theirs, ours = (read_vocabulary(at) for at in (folder, streams.sources[0].files.tokenizer_directory()))
    if theirs is not None and ours is not None and (difference := tokenizer_difference(theirs, ours)):
        raise UserError(f"{where} has another tokenizer than the corpus: {difference}. Build the corpus with its own.")
    rows = teacher.config.vocab_size
    if rows != streams.vocab_size:
        raise UserError(
            f"{where} has {rows} rows in its vocabulary, the student {streams.vocab_size}; set model.vocab_size to "
            f"{rows}."
        )
    if (shape.family == "gpt2") != (config.model.family == "gpt2"):
        raise UserError(f"{where} is a model of type `{shape.family}`, which predicts other tokens than the student's.")
    positions, longest = _num_positions(teacher), max(stage.sequence_length for stage in streams.stages.all)
    if positions < longest:
        raise UserError(f"{where} has {positions} positions; rows have up to {longest} tokens (data.sequence_length).")
    compares_hidden = any(task.name == "distil" and task.cosine_weight for task in config.objective.tasks)
    if compares_hidden and shape.hidden_size != config.model.hidden_size:
        raise UserError(
            f"{where} has width {shape.hidden_size}, the student {config.model.hidden_size}: their hidden states "
            "cannot be compared. Set objective.cosine_weight to 0."
        )
    return cast("nn.Module", cast("Any", teacher).to(device))


def teacher_shape(config: RunConfig) -> ModelConfig | None:
    """The teacher's shape, from its ``config.json``; None: there is none.

    Raises:
        UserError: it cannot be read, or names no model that can teach here.
    """
    folder = _teacher_folder(config)
    if folder is None:
        return None
    try:
        keys = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        teacher_type(folder, keys)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"objective.teacher: {folder} has no config.json that can be read ({error}).") from None
    return model_config_of(keys)


def _num_positions(teacher: Any) -> int:
    """The longest text that it reads: RoBERTa's table has rows before the first position."""
    shape = model_config_of(teacher.config.to_dict())
    follows = FAMILIES[shape.family].positions_follow_padding
    return shape.max_positions - ((teacher.config.pad_token_id or 0) + 1 if follows else 0)


def _teacher_folder(config: RunConfig) -> Path | None:
    task = teacher_task(config)
    return None if task is None else Path(str(task.teacher))
