"""Threads, and the lines that Lightning and DeepSpeed would print into every log."""

from __future__ import annotations

import logging
import os
import warnings

import torch

from pipeline.base.ranks import RankFacts
from pipeline.config.run import TrainConfig


def set_threads(train: TrainConfig, facts: RankFacts) -> None:
    """CPU threads of this rank and the precision of fp32 matrix products on CUDA."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(train.threads_per_rank or max(1, cores // facts.local_world_size))
    torch.set_float32_matmul_precision(train.matmul_precision)


def quiet_lightning() -> None:
    """Advertisements and hints off; warnings about the training itself stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "DeepSpeed", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own call
        r".*The `srun` command is available on your system but is not used.*",
        # `PretrainModule.configure_gradient_clipping` leaves clipping to DeepSpeed by itself.
        r".*Since DeepSpeed handles gradient clipping internally.*",
        # DeepSpeed calls these by their older names.
        r".*`torch\.distributed\.\w+` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
