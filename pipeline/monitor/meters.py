"""What is measured, as pure functions and small counters: no device, no clock but the times that are handed in.

``docs/monitor.md`` explains each number; ``pipeline.models.flops`` counts the FLOPs of a step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median_low

from pipeline.monitor.step_clock import OUTSIDE_TRAINING, PHASES, Phase


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


def step_rates(
    num_steps: int,
    num_tokens: int,
    flops: float,
    seconds: Mapping[Phase, float],
    peak_flops_per_device: float | None,
    world_size: int,
) -> dict[str, float | None]:
    """Rates of some steps, and where their time went.

    Args:
        num_steps: optimizer steps, at least 1.
        num_tokens: real tokens of their global batches.
        flops: of all ranks.
        seconds: by phase, on this rank.

    Returns:
        ``tokens_per_second`` (global), ``seconds_per_step``, ``mfu`` (None on unknown devices) and
        ``data_wait_fraction``, which leave out validations and checkpoints; ``time_<phase>``: seconds a step of every
        phase, validations and checkpoints too.
    """
    outside = sum(seconds[phase] for phase in OUTSIDE_TRAINING)
    training = max(sum(seconds.values()) - outside, 1e-9)
    return {
        "tokens_per_second": num_tokens / training,
        "seconds_per_step": training / num_steps,
        "mfu": model_flops_utilization(flops, training, peak_flops_per_device, world_size),
        "data_wait_fraction": seconds["data_wait"] / training,
        **{f"time_{phase}": seconds[phase] / num_steps for phase in PHASES},
    }


def own_seconds(seconds: Mapping[Phase, float]) -> float:
    """Of the time by phase of a rank, what it did not wait for others in, and did not validate or save in."""
    return sum(seconds.values()) - sum(seconds[phase] for phase in ("communication", *OUTSIDE_TRAINING))


def slowest_rank(own_seconds_by_rank: Sequence[float]) -> dict[str, float]:
    """The rank whose steps take longest without their waits for other ranks; nothing with one rank.

    Args:
        own_seconds_by_rank: a step, see :func:`own_seconds`.

    Returns:
        ``slowest_rank``, ``slowest_rank_seconds`` and, to compare with, ``median_rank_seconds``.
    """
    if len(own_seconds_by_rank) < 2:
        return {}
    slowest = max(range(len(own_seconds_by_rank)), key=own_seconds_by_rank.__getitem__)
    return {
        "slowest_rank": slowest,
        "slowest_rank_seconds": own_seconds_by_rank[slowest],
        "median_rank_seconds": median_low(own_seconds_by_rank),
    }


class EtaMeter:
    """Seconds left, from the pace of the last logged steps (validation and checkpoints included, as they go on), or
    what is left of a time budget, if that is less.

    Args:
        budget_seconds: time that the whole run may take; None: as long as its steps do.
    """

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        now_seconds: float,
        budget_seconds: float | None = None,
        window: int = 20,
    ) -> None:
        self.total_steps = total_steps
        self.budget_seconds = budget_seconds
        self._budget_left = math.inf
        self._points: deque[tuple[int, float]] = deque([(first_step, now_seconds)], maxlen=window)

    def add(self, step: int, now_seconds: float, budget_share: float | None = None) -> float | None:
        """Seconds left after ``step``; None before there is a pace or a share of a budget.

        Args:
            budget_share: of the budget, spent so far; None: as at the step before.
        """
        if step > self._points[-1][0]:
            self._points.append((step, now_seconds))
        if self.budget_seconds is not None and budget_share is not None:
            self._budget_left = max(1 - budget_share, 0.0) * self.budget_seconds
        (first_step, first_seconds), (last_step, last_seconds) = self._points[0], self._points[-1]
        left = self._budget_left
        if last_step > first_step:
            pace = (last_seconds - first_seconds) / (last_step - first_step)
            left = min(left, max(self.total_steps - step, 0) * pace)
        return left if math.isfinite(left) else None


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
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            return int(file.read().partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError):
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
