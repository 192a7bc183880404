"""The teacher of a run that distils one: read, compared with the run, and put beside the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.base.errors import UserError
from pipeline.config.derived import row_objective
from pipeline.config.model import ModelConfig
from pipeline.config.run import RunConfig
from pipeline.models.shapes import model_config_of
from pipeline.models.teacher import read_teacher
from pipeline.objectives.distil import distillation_loss
from pipeline.objectives.loss import PackedLoss
from pipeline.train.start_weights import read_vocabulary, tokenizer_difference
from pipeline.train.streams import Streams


def taught_loss(config: RunConfig, streams: Streams, device: torch.device) -> PackedLoss:
    """The loss of a run of objective ``distil``. On CUDA the teacher computes in bf16 where the run does not in fp32.

    Raises:
        UserError: the teacher cannot be read, or has another tokenizer, vocabulary, kind or width.
    """
    folder = Path(str(config.objective.teacher))
    where = f"objective.teacher: {folder}"
    half = device.type == "cuda" and config.train.precision != "fp32"
    teacher = read_teacher(folder, torch.bfloat16 if half else torch.float32)
    theirs, ours = (read_vocabulary(at) for at in (folder, streams.sources[0].files.tokenizer_directory()))
    if theirs is not None and ours is not None and (difference := tokenizer_difference(theirs, ours)):
        raise UserError(f"{where} has another tokenizer than the corpus: {difference}. Build the corpus with its own.")
    rows = teacher.config.vocab_size
    if rows != streams.vocab_size:
        raise UserError(
            f"{where} has {rows} rows in its vocabulary, the student {streams.vocab_size}; set model.vocab_size to "
            f"{rows}."
        )
    shape = teacher_shape(config)
    if (shape.family == "gpt2") != (config.model.family == "gpt2"):
        raise UserError(f"{where} is a model of type `{shape.family}`, which predicts other tokens than the student's.")
    if shape.max_positions < config.data.sequence_length:
        raise UserError(
            f"{where} has {shape.max_positions} positions; rows have {config.data.sequence_length} tokens "
            "(data.sequence_length)."
        )
    if config.objective.cosine_weight and shape.hidden_size != config.model.hidden_size:
        raise UserError(
            f"{where} has width {shape.hidden_size}, the student {config.model.hidden_size}: their hidden states "
            "cannot be compared. Set objective.cosine_weight to 0."
        )
    return distillation_loss(cast("Any", teacher).to(device), config.objective, row_objective(config).name)


def teacher_shape(config: RunConfig) -> ModelConfig:
    """The teacher's shape, from its ``config.json``."""
    path = Path(str(config.objective.teacher)) / "config.json"
    return model_config_of(json.loads(path.read_text(encoding="utf-8")))
