"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019), and what its relatives share with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.optim.foreach import ForeachOptimizer


class AdamW(ForeachOptimizer):
    """AdamW for moments that are kept in bf16; with fp32 moments torch's own is used, which has one kernel for all.

        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        w = w - lr (m' / (sqrt(v') + eps) + decay w)          m', v': corrected for their start at 0

    Groups have ``lr``, ``betas``, ``eps``, ``weight_decay``.
    """

    moments = ("exp_avg", "exp_avg_sq")
    elementwise = True

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], *moments: Any) -> None:
        first, second = moments
        directions = adam_directions(gradients, first, second, group["betas"], group["eps"], group["step"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])


def adam_directions(
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    betas: tuple[float, float],
    epsilon: float,
    step: int,
) -> list[Tensor]:
    """Update both moments in place; m' / (sqrt(v') + eps) with the moments corrected for their start at 0.

    Args:
        step: number of this step, from 1.
    """
    beta1, beta2 = betas
    torch._foreach_lerp_(first, gradients, 1 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
    denominators = torch._foreach_sqrt(second)
    torch._foreach_div_(denominators, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(denominators, epsilon)
    directions = list(torch._foreach_div(first, denominators))
    torch._foreach_div_(directions, 1 - beta1**step)
    return directions


def decayed_betas(betas: tuple[float, float], step: int) -> tuple[float, float]:
    """Decays that hold the mean of all gradients so far instead of correcting a moment that began at 0.

    Args:
        step: number of this step, from 1: both decays of step 1 are 0.
    """
    return _decayed(betas[0], step), _decayed(betas[1], step)


def _decayed(beta: float, step: int) -> float:
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)
