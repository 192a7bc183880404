"""The learning rate as a pure function of the step: no state, so nothing to save and nothing to get out of step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from pipeline.config.run import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, schedule: ScheduleConfig, optimizer: OptimizerConfig, total_steps: int) -> float:
    """Learning rate of a step.

    With peak p, warmup of w steps, last step z = ``total_steps - 1`` and final ratio f:

    - ``step < w``: p step / w, so the very first step only warms up the optimizer's moments (0 for w > 0);
    - ``linear``: from p at step w straight to f p at step z;
    - ``cosine``: from p at step w along half a cosine to f p at step z (Loshchilov and Hutter 2017, SGDR);
    - ``wsd``: p, then over the last ``decay_steps`` straight to f p at step z (Hu et al. 2024, MiniCPM).

    Args:
        step: optimizer steps done before this one, 0 .. ``total_steps - 1``; beyond that the last value stays.
        total_steps: steps of the whole run.
    """
    if step < schedule.warmup_steps:
        return optimizer.learning_rate * step / schedule.warmup_steps
    last = total_steps - 1
    first = last - schedule.decay_steps if schedule.name == "wsd" else schedule.warmup_steps
    if step <= first:
        return optimizer.learning_rate
    share_of_decay = min((step - first) / (last - first), 1.0) if last > first else 1.0
    left = _SHAPES[schedule.name](share_of_decay)
    return optimizer.learning_rate * (schedule.final_ratio + (1 - schedule.final_ratio) * left)


def _linear(share: float) -> float:
    return 1 - share


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


_SHAPES: Final[Mapping[str, Callable[[float], float]]] = {"linear": _linear, "cosine": _cosine, "wsd": _linear}
