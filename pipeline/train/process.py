"""Threads, and the lines that Lightning and DeepSpeed would print into every log."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping

import torch

from pipeline.base.ranks import RankFacts
from pipeline.config.run import TrainConfig


def set_threads(train: TrainConfig, facts: RankFacts) -> None:
    """CPU threads of this rank and the precision of fp32 matrix products on CUDA."""
    torch.set_num_threads(train.threads_per_rank or default_threads(facts, os.environ))
    torch.set_float32_matmul_precision(train.matmul_precision)


def default_threads(facts: RankFacts, environ: Mapping[str, str]) -> int:
    """The cores that SLURM gave this task, else the cores of this process divided by the ranks of the node."""
    if facts.launcher == "slurm" and environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return int(environ["SLURM_CPUS_PER_TASK"])
    return max(1, len(os.sched_getaffinity(0)) // facts.local_world_size)


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
