"""What is measured, as pure functions and small counters: no device, no clock but the times that are handed in.

``docs/monitor.md`` explains each number; ``pipeline.models.flops`` counts the FLOPs of a step.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path


def perplexity(loss: float) -> float:
    """exp(loss in nats); infinity instead of an overflow, NaN stays NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def model_flops_utilization(
    flops_per_step: float, seconds_per_step: float, peak_flops_per_device: float | None, world_size: int
) -> float | None:
    """MFU: the share of the devices' peak that the model's own arithmetic reaches.

    ``flops_per_step / seconds_per_step / (peak_flops_per_device x world_size)``, as PaLM (Chowdhery et al. 2022,
    appendix B) defines it: forward and backward of the model on real tokens, nothing for recomputation or padding.

    Args:
        flops_per_step: FLOPs of one optimizer step over all ranks.
        peak_flops_per_device: FLOP/s; None (an unknown device) gives None.
    """
    if peak_flops_per_device is None or seconds_per_step <= 0:
        return None
    return flops_per_step / seconds_per_step / (peak_flops_per_device * world_size)


@dataclass
class ThroughputMeter:
    """Counts what happened since the last logged step.

    Call :meth:`add` with the global counts of one or more optimizer steps, and :meth:`read` at logged steps. Time
    spent outside training (validation, checkpoints) is taken out with :meth:`exclude`.
    """

    world_size: int
    peak_flops_per_device: float | None
    started_seconds: float
    """Clock (``time.perf_counter()``) at the start of the first step."""
    num_steps: int = 0
    num_tokens: int = 0
    flops: float = 0.0
    data_wait_seconds: float = 0.0
    excluded_seconds: float = 0.0

    def add(self, num_tokens: int, flops: float, data_wait_seconds: float, num_steps: int = 1) -> None:
        """Optimizer steps: real tokens and FLOPs of their global batches, seconds this rank waited for data."""
        self.num_steps += num_steps
        self.num_tokens += num_tokens
        self.flops += flops
        self.data_wait_seconds += data_wait_seconds

    def exclude(self, seconds: float) -> None:
        """Seconds that were no training."""
        self.excluded_seconds += seconds

    def read(self, now_seconds: float) -> dict[str, float | None]:
        """Rates since the last call, and start anew.

        Returns:
            ``tokens_per_second`` (global), ``seconds_per_step``, ``mfu`` (None on unknown devices) and
            ``data_wait_fraction``, all None if no step was added.
        """
        seconds = max(now_seconds - self.started_seconds - self.excluded_seconds, 1e-9)
        rates: dict[str, float | None] = dict.fromkeys(
            ("tokens_per_second", "seconds_per_step", "mfu", "data_wait_fraction")
        )
        if self.num_steps:
            mfu = model_flops_utilization(self.flops, seconds, self.peak_flops_per_device, self.world_size)
            rates = {
                "tokens_per_second": self.num_tokens / seconds,
                "seconds_per_step": seconds / self.num_steps,
                "mfu": mfu,
                "data_wait_fraction": min(self.data_wait_seconds / seconds, 1.0),
            }
        self.started_seconds = now_seconds
        self.num_steps = self.num_tokens = 0
        self.flops = self.data_wait_seconds = self.excluded_seconds = 0.0
        return rates


class EtaMeter:
    """Seconds left, from the pace of the last logged steps (validation and checkpoints included, as they go on)."""

    def __init__(self, first_step: int, total_steps: int, now_seconds: float, window: int = 20) -> None:
        self.total_steps = total_steps
        self._points: deque[tuple[int, float]] = deque([(first_step, now_seconds)], maxlen=window)

    def add(self, step: int, now_seconds: float) -> float | None:
        """Seconds left after ``step``; None before there is a pace."""
        if step > self._points[-1][0]:
            self._points.append((step, now_seconds))
        (first_step, first_seconds), (last_step, last_seconds) = self._points[0], self._points[-1]
        if last_step == first_step:
            return None
        return max(self.total_steps - step, 0) * (last_seconds - first_seconds) / (last_step - first_step)


def format_seconds(seconds: float) -> str:
    """``3:20``, ``2:03:20`` or ``4 d 02:03`` (days, hours, minutes)."""
    total = max(round(seconds), 0)
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_count(value: float) -> str:
    """Three significant digits and a unit: ``950``, ``12.3k``, ``4.56M``, ``1.20G``, ``7.89T``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


def memory_gb(device: str) -> float:
    """Most memory held so far, in 10^9 bytes: of the CUDA allocator for ``"cuda"``, else of this process (RSS)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return _peak_resident_bytes() / 1e9


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
