"""Lion (Chen et al. 2023, Symbolic discovery of optimization algorithms, algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.optim.foreach import ForeachOptimizer


class Lion(ForeachOptimizer):
    """Steps of one size in every element, by the sign of an interpolation between momentum and gradient.

        c = beta1 m + (1 - beta1) g
        w = w - lr (sign(c) + decay w)
        m = beta2 m + (1 - beta2) g

    Groups have ``lr``, ``betas``, ``weight_decay``.
    """

    moments = ("momentum",)
    elementwise = True

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], *moments: Any) -> None:
        (momentum,) = moments
        beta1, beta2 = group["betas"]
        direction = torch._foreach_lerp(momentum, gradients, 1 - beta1)
        torch._foreach_sign_(direction)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, direction, alpha=-group["lr"])
        torch._foreach_lerp_(momentum, gradients, 1 - beta2)
