"""The clock of a run's steps: which one, and how waits for data and for other ranks get onto it.

What can be said of the reduction of gradients. It runs beside the backward pass, bucket by bucket, and costs nothing
until the last gradient has been computed: `communication` is the time from then until the backward pass returns. That
is under ``ddp`` and ZeRO 2 and 3; ZeRO 1 reduces all that it has after the last gradient. What ZeRO gathers, weights
after the optimizer's step and with ZeRO 3 before every layer, stays in the phase that it is part of.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from pipeline.monitor.step_clock import StepClock, StreamClock
from pipeline.objectives.batch import Batch


def make_clock(device: torch.device) -> StepClock:
    """The clock for steps on ``device``."""
    if device.type == "cuda":
        return StreamClock(lambda: torch.cuda.Event(enable_timing=True))
    return StepClock()


class StepMarks:
    """Moments between steps: of the host, or on CUDA of the stream, where adding one waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._marks: list[Any] = []

    def add(self) -> None:
        """A step has ended, or the first begins."""
        if not self._on_device:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """From every mark to the next one; waits for the device."""
        if not self._on_device:
            return [end - begin for begin, end in pairwise(self._marks)]
        self._marks[-1].synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in pairwise(self._marks)]


class TimedBatches:
    """The batches of a loader; the time until each is there is `data_wait`."""

    def __init__(self, loader: Iterable[Batch], clock: StepClock) -> None:
        self.loader = loader
        self.clock = clock

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        enter = self.clock.enter
        while True:
            enter("data_wait")
            batch = next(batches, None)
            enter("other")
            if batch is None:
                return
            yield batch


def time_gradient_reduction(strategy_model: Any, clock: StepClock) -> None:
    """Have ``clock`` notice when all gradients are computed and the rest of their reduction begins.

    Args:
        strategy_model: DDP's wrapper or DeepSpeed's engine; anything else reduces nothing.
    """
    if isinstance(strategy_model, DistributedDataParallel):
        # A lambda, because DDP reads annotations and takes no postponed ones.
        strategy_model.register_comm_hook(None, lambda state, bucket: _reduce(bucket, clock))
    elif hasattr(strategy_model, "allreduce_gradients"):
        reduce_rest = strategy_model.allreduce_gradients

        def timed(*args: Any, **kwargs: Any) -> None:
            with clock.during("communication"):
                reduce_rest(*args, **kwargs)

        strategy_model.allreduce_gradients = timed


def _reduce(bucket: torch.distributed.GradBucket, clock: StepClock) -> torch.futures.Future[torch.Tensor]:
    """The mean over the ranks, as DDP computes it without a hook."""
    if bucket.is_last():
        clock.enter("communication")
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is the default group
