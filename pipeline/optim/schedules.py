"""The learning rate as a pure function of the step, or of the share of a time budget: no state, nothing to save."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from pipeline.config.optimization import OptimizerConfig, ScheduleConfig


def learning_rate(
    step: int, schedule: ScheduleConfig, optimizer: OptimizerConfig, total_steps: int, budget_share: float = 0.0
) -> float:
    """Learning rate of a step.

    With peak p, final ratio f, position x, warmup until w, end z, and for ``wsd`` a decay of length d. Without a budget
    x is the step, w = ``warmup_steps``, z = ``total_steps - 1``, d = ``decay_steps``; with ``budget_hours`` x is
    ``budget_share``, w = ``warmup_share``, z = 1, d = ``decay_share``.

    - ``x < w``: p x / w, so the very first step only warms up the optimizer's moments (0 for w > 0);
    - ``linear``: from p at w straight to f p at z;
    - ``cosine``: from p at w along half a cosine to f p at z (Loshchilov and Hutter 2017, SGDR);
    - ``polynomial``: f p + (1 - f) p (1 - done)^power, done = (x - w) / (z - w);
    - ``wsd``: p, then from z - d to f p at z, straight (Hu et al. 2024, MiniCPM) or as 1 - sqrt(done) (Haegele et al.
      2024, Scaling laws beyond fixed training durations);
    - ``inverse_sqrt``: p sqrt(w / x) (Vaswani et al. 2017);
    - ``constant``: p.

    Args:
        step: optimizer steps done before this one, 0 .. ``total_steps - 1``; beyond that the last value stays.
        total_steps: steps of the whole run.
        budget_share: hours trained before this step / ``budget_hours``; above 1 counts as 1.
    """
    peak = optimizer.learning_rate
    position, warmup, last, decay = map(float, (step, schedule.warmup_steps, total_steps - 1, schedule.decay_steps))
    if schedule.budget_hours is not None:
        position, warmup, last, decay = min(budget_share, 1.0), schedule.warmup_share, 1.0, schedule.decay_share
    if position < warmup:
        return peak * position / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "inverse_sqrt":
        return peak * math.sqrt(warmup / position) if position > 0 else peak
    first = last - decay if schedule.name == "wsd" else warmup
    if position <= first:
        return peak
    done = min((position - first) / (last - first), 1.0) if last > first else 1.0
    left = _SHAPES[schedule.decay_shape if schedule.name == "wsd" else schedule.name](done, schedule.power)
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * left)


def _linear(done: float, power: float) -> float:
    return 1 - done


def _cosine(done: float, power: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _polynomial(done: float, power: float) -> float:
    return (1 - done) ** power


def _one_minus_sqrt(done: float, power: float) -> float:
    return 1 - math.sqrt(done)


_SHAPES: Final[Mapping[str, Callable[[float, float], float]]] = {
    "linear": _linear,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "1-sqrt": _one_minus_sqrt,
}
