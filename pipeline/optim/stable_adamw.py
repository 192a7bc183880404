"""StableAdamW (Wortsman et al. 2023, Stable and low-precision training for large-scale vision-language models)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.optim.adamw import decayed_betas
from pipeline.optim.foreach import ForeachOptimizer


class StableAdamW(ForeachOptimizer):
    """AdamW with the update clipping of AdaFactor, tensor by tensor (algorithm 2 of the paper).

        b1 = beta1 (1 - beta1^(t-1)) / (1 - beta1^t),  b2 alike: decays that need no correction of the moments
        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
        rms = sqrt(mean(g^2 / max(v, eps^2)))        about 1, and large where v has not seen such gradients
        lr' = lr / max(1, rms)
        w = w - lr' decay w - lr' m / (sqrt(v) + eps)

    Groups have ``lr``, ``betas``, ``eps``, ``weight_decay``.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], *moments: Any) -> None:
        first, second = moments
        beta1, beta2 = decayed_betas(group["betas"], group["step"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(second)
        surprise = torch._foreach_div(gradients, torch._foreach_clamp_min(roots, group["eps"]))
        norms = torch._foreach_norm(surprise)
        torch._foreach_div_(norms, [math.sqrt(gradient.numel()) for gradient in gradients])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, roots)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        rates = group["lr"] / torch.stack(norms).clamp(min=1.0)
        torch._foreach_mul_(updates, list(rates.unbind()))
        torch._foreach_sub_(parameters, updates)
