"""The weights of a checkpoint, found, read and loaded without leniency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.checkpoints.meta import checkpoint_directory, list_checkpoints
from pipeline.checkpoints.reading import misfits, read_weights, some_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAY_OUT = "Export another step with --step."


def find_checkpoint(run_directory: Path, step: int | None) -> tuple[int, Path]:
    """Step and directory of a run's checkpoint; the newest without ``step``.

    Raises:
        UserError: the run has no checkpoint, or none of that step.
    """
    found = list_checkpoints(run_directory)
    if not found:
        raise UserError(
            f"export: {run_directory} has no checkpoint yet. One is written every `checkpoint.every_steps` steps, at "
            "the end, and on SIGTERM: train first, or give another run directory."
        )
    if step is None:
        step = max(found)
    if step not in found:
        there = ", ".join(map(str, found))
        raise UserError(
            f"export: {run_directory} has no checkpoint of step {step}; there are {there} (checkpoint.keep_last: older "
            "ones are deleted). Choose one of them, or leave --step out for the newest."
        )
    return step, checkpoint_directory(run_directory, step)


def read_finite_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name.

    Raises:
        UserError: it is damaged, or has a value that is no number.
    """
    weights = read_weights(checkpoint, WAY_OUT)
    broken = sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all())
    if broken:
        raise UserError(
            f"checkpoint {checkpoint} has weights that are no numbers (NaN or infinite) in {some_of(broken)}: "
            f"the run diverged before it. {WAY_OUT}"
        )
    return weights


def load_strictly(model: PreTrainedModel, weights: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Load ``weights``, names as ``save_pretrained`` writes them, into ``model``; each must be there and fit. Buffers,
    which the stock class makes and no training changes, are in no checkpoint.

    Raises:
        UserError: names are missing or left over, or shapes differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    present = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if problems := misfits(present, expected):
        raise UserError(
            f"the weights of checkpoint {checkpoint} do not fit {type(model).__name__} as the run's config "
            f"describes it: {problems}. Restore the config.yaml that the checkpoint was trained with."
        )
    model.load_state_dict(dict(weights), strict=False)
