"""LAMB (You et al. 2020, Large batch optimization for deep learning: training BERT in 76 minutes, algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.optim.adamw import adam_directions
from pipeline.optim.foreach import ForeachOptimizer


class Lamb(ForeachOptimizer):
    """Adam's direction, with decay, scaled to the norm of the weights, tensor by tensor.

        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
        u = m' / (sqrt(v') + eps) + decay w          m', v': corrected for their start at 0
        w = w - lr r u,  r = |w| / |u|               r = 1 where one of the norms is 0

    As in the paper's and MLPerf's BERT r is 1 for biases and norms (groups without ``trust_ratio``), and it is not
    clipped (phi(z) = z). NVIDIA's and MLPerf's implementation divides the gradient by max(1, |g| / limit) first, |g|
    being the norm over all parameters: that is `train.gradient_clip_norm`, 1.0 by default, done before this.

    Groups have ``lr``, ``betas``, ``eps``, ``weight_decay``, ``trust_ratio``.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], *moments: Any) -> None:
        first, second = moments
        updates = adam_directions(gradients, first, second, group["betas"], group["eps"], group["step"])
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["trust_ratio"]:
            weight_norms = torch.stack(torch._foreach_norm(parameters))
            update_norms = torch.stack(torch._foreach_norm(updates))
            defined = (weight_norms > 0) & (update_norms > 0)
            ratios = torch.where(defined, weight_norms / update_norms, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
