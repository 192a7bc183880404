"""Checkpoints of a run directory: ``checkpoints/step-00000200/``.

======================  ================================================================================================
``meta.json``           step, tokens seen, fingerprints, the config, the strategy; its presence marks a whole checkpoint
``model.safetensors``   fp32 weights under Hugging Face names, tied weights once: what `pretrain export` reads
``state/``              optimizer state: ``trainer.pt`` (single, ddp) or DeepSpeed's shards
======================  ================================================================================================

A checkpoint is written under a temporary name, fsynced and renamed: it is whole or absent.
"""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from pipeline.base.errors import UserError
from pipeline.base.files import publish_directory, read_json, write_json_atomically
from pipeline.base.logs import get_logger
from pipeline.export.checkpoint_weights import (
    META_NAME,
    WEIGHTS_NAME,
    checkpoint_directory,
    list_checkpoints,
    load_strictly,
    read_weights,
)
from pipeline.models.build import stock_state_dict
from pipeline.train.identity import check_layout
from pipeline.train.module import PretrainModule
from pipeline.train.strategies import ZERO_STAGES, engine_of

FORMAT_VERSION = 1
_WAY_OUT = "Delete the directory to resume from an older one."
_ZERO_TAG = "zero"
_DAMAGE = (OSError, RuntimeError, ValueError, EOFError, KeyError, AssertionError, pickle.UnpicklingError)
"""What torch and DeepSpeed raise at a truncated, overwritten or missing file of state."""


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says of itself; ``identity`` is compared on resume (`identity.py`)."""

    step: int
    tokens_seen: int
    strategy: str
    precision: str
    world_size: int
    identity: dict[str, Any]
    facts: dict[str, Any]
    training_seconds: float = 0.0
    """Time of the run up to here, which a schedule with a time budget goes on from."""

    budget_spent: bool = False
    """The step was the last one of a time budget."""

    bad_steps: dict[str, Any] = field(default_factory=dict)
    """Skipped steps, and what the next decision depends on (`detector.py`)."""


def read_meta(directory: Path) -> CheckpointMeta:
    """The checkpoint's own description.

    Raises:
        UserError: missing, damaged or of a newer format.
    """
    path = directory / META_NAME
    value = read_json(path, "checkpoint")
    try:
        if value["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"checkpoint {directory} has format {value['format_version']}; this version reads up to "
                f"{FORMAT_VERSION}: update pretrain."
            )
        return CheckpointMeta(**{name: value[name] for name in CheckpointMeta.__dataclass_fields__ if name in value})
    except (KeyError, TypeError) as error:
        raise UserError(_damaged(directory, f"{META_NAME}: {error!r}")) from None


def save_checkpoint(trainer: Trainer, module: PretrainModule, run_directory: Path, meta: CheckpointMeta) -> Path:
    """Write one checkpoint; every rank must call it. Nothing happens if this step is saved already."""
    path = checkpoint_directory(run_directory, meta.step)
    if (path / META_NAME).is_file():
        return path
    temporary = path.with_name(f".{path.name}.tmp")
    if trainer.is_global_zero:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "state").mkdir(parents=True)
    assert module.control is not None
    module.control.barrier()
    weights = _full_weights(module)
    if meta.strategy in ZERO_STAGES:
        engine_of(trainer).save_checkpoint(str(temporary / "state"), tag=_ZERO_TAG, save_latest=False)
    elif trainer.is_global_zero:
        state = {
            "optimizer": trainer.optimizers[0].state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
        }
        torch.save(state, temporary / "state" / "trainer.pt")
    module.control.barrier()
    if trainer.is_global_zero:
        save_file(weights, temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        fields = {name: getattr(meta, name) for name in CheckpointMeta.__dataclass_fields__}
        write_json_atomically(temporary / META_NAME, {"format_version": FORMAT_VERSION, **fields})
        if path.exists():  # without its meta.json: no checkpoint, yet in the way of this one
            _delete(path)
        publish_directory(temporary, path)
    module.control.barrier()
    return path


def _full_weights(module: PretrainModule) -> dict[str, torch.Tensor]:
    """fp32 weights on the host of rank 0 (empty elsewhere); gathers ZeRO's shards parameter by parameter."""
    keep = module.trainer.is_global_zero
    if module.config.train.strategy not in ZERO_STAGES:
        return stock_state_dict(module.model) if keep else {}
    from deepspeed.utils import safe_get_full_fp32_param

    full: dict[str, torch.Tensor] = {}
    for name, parameter in module.model.named_parameters():  # tied parameters come once
        value = safe_get_full_fp32_param(parameter)  # the fp32 master, which the bf16 module only rounds
        if keep:
            whole = parameter if value is None else value
            full[name] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()
    return full


def load_checkpoint(trainer: Trainer, module: PretrainModule, directory: Path) -> None:
    """Restore the optimizer, after the strategy has been set up; weights too, where DeepSpeed keeps them.

    Under single and ddp the weights were loaded into the model before (:func:`load_weights`).
    """
    zero = module.config.train.strategy in ZERO_STAGES
    try:
        if zero:
            loaded, _ = engine_of(trainer).load_checkpoint(str(directory / "state"), tag=_ZERO_TAG)
            if loaded is None:
                raise FileNotFoundError("DeepSpeed found no state in it")
            # Counted anew from a step's start: the number of micro-batches may have changed.
            engine_of(trainer).micro_steps = 0
        else:
            state = torch.load(directory / "state" / "trainer.pt", map_location="cpu", weights_only=True)
            trainer.optimizers[0].load_state_dict(state["optimizer"])
            trainer.precision_plugin.load_state_dict(state["precision"])
    except torch.OutOfMemoryError:
        raise
    except _DAMAGE as error:
        what = "state" if zero else "trainer.pt"
        raise UserError(_damaged(directory, f"{what}: {str(error) or type(error).__name__}")) from None


def go_back(trainer: Trainer, module: PretrainModule, directory: Path) -> CheckpointMeta:
    """Restore weights and optimizer of an earlier checkpoint between two steps; every rank must call it.

    Returns:
        What the checkpoint says of itself.

    Raises:
        UserError: it is damaged, or was saved on another number of ranks or by a strategy that this one cannot read.
    """
    meta = read_meta(directory)
    strategy = module.config.train.strategy
    check_layout(strategy, trainer.world_size, meta.strategy, meta.world_size, str(directory))
    if strategy in ZERO_STAGES:
        engine = engine_of(trainer)
        skipped_steps = engine.skipped_steps
        load_checkpoint(trainer, module, directory)
        engine.skipped_steps = skipped_steps  # counted on: LossScaling tells of new ones
    else:
        load_weights(module.model, directory)
        load_checkpoint(trainer, module, directory)
    return meta


def load_weights(model: Any, directory: Path) -> None:
    """Load ``model.safetensors`` into the stock model, strictly.

    Raises:
        UserError: the file is damaged, or its names or shapes are not the model's.
    """
    load_strictly(model, read_weights(directory, _WAY_OUT), directory)


def _damaged(directory: Path, why: str) -> str:
    return f"checkpoint {directory} is damaged ({why}). {_WAY_OUT}"


def prune_checkpoints(run_directory: Path, keep_last: int, every_steps: int) -> None:
    """Delete all but the newest ``keep_last`` checkpoints, and leftovers; called when none is being written.

    Of those made at intervals as many are kept, whatever signals have added: what a rollback finds does not depend on
    how often the run was stopped.
    """
    steps = list_checkpoints(run_directory)
    kept = {*steps[-keep_last:], *[step for step in steps if step % every_steps == 0][-keep_last:]}
    for step in (step for step in steps if step not in kept):
        _delete(checkpoint_directory(run_directory, step))
        get_logger().info("checkpoint of step %d deleted (checkpoint.keep_last: %d)", step, keep_last)
    # What a kill in the middle of a save or a deletion has left.
    for path in (run_directory / "checkpoints").glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: Path) -> None:
    """Renamed first: a deletion cut short never leaves something that looks like a checkpoint."""
    doomed = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)
