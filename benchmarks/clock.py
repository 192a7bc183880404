"""Seconds between the ends of steps: CUDA events on a GPU, which the loop does not wait for, else the clock."""

from __future__ import annotations

import time
from typing import Any


class StepClock:
    """Call :meth:`tick` when a step has been issued.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self._ticks: list[Any] = []

    def tick(self) -> None:
        """The step so far ends here."""
        if self.device_type == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def seconds_a_step(self, warmup_steps: int) -> float:
        """Mean over the steps after the first ``warmup_steps``; waits for the device.

        Raises:
            ValueError: no step came after those.
        """
        num_steps = len(self._ticks) - warmup_steps
        if warmup_steps < 1 or num_steps < 1:
            raise ValueError(f"{len(self._ticks)} steps, of which {warmup_steps} to warm up: there is nothing to time")
        first, last = self._ticks[warmup_steps - 1], self._ticks[-1]
        if self.device_type == "cuda":
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3 / num_steps
        return float(last - first) / num_steps
