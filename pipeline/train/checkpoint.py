"""The checkpoints of a run while it trains: written by all ranks together, read by each for itself.

A checkpoint is written under a temporary name, fsynced and renamed: it is whole or absent. What is in it depends on
neither strategy nor number of ranks (`pipeline/checkpoints/`), so a run goes on from it under any of them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Trainer

from pipeline.base.files import publish_directory
from pipeline.base.logs import get_logger
from pipeline.checkpoints.meta import META_NAME, CheckpointMeta, checkpoint_directory, list_checkpoints, write_meta
from pipeline.checkpoints.pieces import rank_file_name, write_rank_file
from pipeline.checkpoints.reading import CheckpointReader
from pipeline.train.loss_scaling import read_loss_scale, restore_loss_scale
from pipeline.train.module import PretrainModule
from pipeline.train.rank_state import rank_pieces, restore_rank


def save_checkpoint(trainer: Trainer, module: PretrainModule, run_directory: Path, meta: CheckpointMeta) -> Path:
    """Write one checkpoint; every rank must call it. Nothing happens if this step is saved already."""
    path = checkpoint_directory(run_directory, meta.step)
    if (path / META_NAME).is_file():
        return path
    temporary = path.with_name(f".{path.name}.tmp")
    if trainer.is_global_zero:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    assert module.control is not None
    module.control.barrier()
    write_rank_file(temporary / rank_file_name(trainer.global_rank), rank_pieces(trainer, module))
    module.control.barrier()
    if trainer.is_global_zero:
        files = {file.name: {"bytes": file.stat().st_size} for file in sorted(temporary.iterdir())}
        write_meta(temporary, replace(meta, files=files, loss_scale=read_loss_scale(trainer, module)))
        if path.exists():  # without its meta.json: no checkpoint, yet in the way of this one
            _delete(path)
        publish_directory(temporary, path)
    module.control.barrier()
    return path


def load_checkpoint(trainer: Trainer, module: PretrainModule, directory: Path) -> CheckpointMeta:
    """Restore weights and optimizer once the strategy has been set up, or between two steps; every rank must call it.

    Returns:
        What the checkpoint says of itself.

    Raises:
        UserError: it is damaged, or was written by a run of another model or optimizer; on every rank.
    """
    reader = CheckpointReader(directory)
    restore_rank(trainer, module, reader)
    restore_loss_scale(trainer, module, reader.meta.loss_scale)
    return reader.meta


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
