"""The weights of a checkpoint, found, read and loaded without leniency."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.models.build import stock_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

META_NAME = "meta.json"
WEIGHTS_NAME = "model.safetensors"
_STEP_NAME = re.compile(r"step-(\d{8,})")
_MOST_NAMES = 5


def checkpoint_directory(run_directory: Path, step: int) -> Path:
    """Where a run keeps its state after ``step``."""
    return run_directory / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run_directory: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending; one without ``meta.json`` is none."""
    matches = (_STEP_NAME.fullmatch(path.name) for path in (run_directory / "checkpoints").glob("step-*"))
    steps = sorted(int(match[1]) for match in matches if match)
    return [step for step in steps if (checkpoint_directory(run_directory, step) / META_NAME).is_file()]


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


def read_weights(checkpoint: Path, way_out: str = "Export another step with --step.") -> dict[str, Tensor]:
    """All tensors of ``model.safetensors`` by name.

    Args:
        way_out: what to do about a damaged one, for the message.

    Raises:
        UserError: missing, truncated, damaged, or with a value that is no number.
    """
    from safetensors.torch import load_file

    path = checkpoint / WEIGHTS_NAME
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises a class of its own without a public base
        raise UserError(f"checkpoint {checkpoint} is damaged ({WEIGHTS_NAME}: {error}). {way_out}") from None
    broken = sorted(name for name, tensor in weights.items() if not torch.isfinite(tensor).all())
    if broken:
        raise UserError(
            f"checkpoint {checkpoint} has weights that are no numbers (NaN or infinite) in {_some(broken)}: "
            f"the run diverged before it. {way_out}"
        )
    return weights


def load_strictly(model: PreTrainedModel, weights: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Load ``weights``, names as ``save_pretrained`` writes them, into ``model``; each must be there and fit.

    Raises:
        UserError: names are missing or left over, or shapes differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in stock_state_dict(model).items()}
    present = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    shapes = [
        f"{name} is {present[name]}, the model's is {shape}"
        for name, shape in expected.items()
        if name in present and present[name] != shape
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing", sorted(expected.keys() - present.keys())),
            ("not the model's", sorted(present.keys() - expected.keys())),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"the weights of checkpoint {checkpoint} do not fit {type(model).__name__} as the run's config "
            f"describes it: {'; '.join(problems)}. Restore the config.yaml that the checkpoint was trained with."
        )
    model.load_state_dict(dict(weights), strict=False)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
