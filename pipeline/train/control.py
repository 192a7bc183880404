"""What all ranks must know alike before a step: one small host all-reduce, apart from the device."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class ControlPlane:
    """Sums host integers and floats over ranks through gloo, so that no device is synchronised.

    Made after the default process group is up (or is none, with one rank).

    Args:
        patience_seconds: how long a rank waits for the others in a collective.
    """

    def __init__(self, world_size: int, patience_seconds: float) -> None:
        self.world_size = world_size
        timeout = timedelta(seconds=patience_seconds)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        self.running: str | None = None
        """The collective that this rank is in; what a rank that hangs is asked for (`watch.py`)."""

    def sum_integers(self, *values: int) -> list[int]:
        """Element-wise sum over ranks; exact, whatever the order of the ranks."""
        if self.group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        self.running = "sum of integers"
        dist.all_reduce(tensor, group=self.group)
        self.running = None
        return [int(value) for value in tensor]

    def sum_floats(self, *values: float) -> list[float]:
        """Element-wise sum over ranks in fp64."""
        if self.group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        self.running = "sum of floats"
        dist.all_reduce(tensor, group=self.group)
        self.running = None
        return [float(value) for value in tensor]

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The CPU tensors of all ranks in rank order; all of one shape."""
        if self.group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        self.running = "gather"
        dist.all_gather(gathered, tensor.contiguous(), group=self.group)
        self.running = None
        return gathered

    def barrier(self) -> None:
        if self.group is not None:
            self.running = "barrier"
            dist.barrier(group=self.group)
            self.running = None


def join_ranks(trainer: Any, module: Any) -> None:
    """Give the module its control plane, at the start of training; every rank calls it.

    Lightning's loop would broadcast a SIGTERM flag, and read it from the device, before every micro-batch; ours rides
    on the one reduction a step that is needed anyway.
    """
    # Where a loop hangs the watch (`watch.py`) comes first; this is what a slow save or evaluation of a rank may take.
    module.control = ControlPlane(trainer.world_size, module.config.train.slow_timeout_seconds)
