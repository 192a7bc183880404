"""Going on from a checkpoint: every rank reads what it needs of all files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from pipeline.checkpoints.meta import CheckpointMeta
from pipeline.checkpoints.reading import CheckpointReader
from pipeline.train.loss_scaling import restore_loss_scale
from pipeline.train.module import PretrainModule
from pipeline.train.rank_state import restore_rank


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
