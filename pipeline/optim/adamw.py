"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019), on matrices and embeddings only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.config.optimization import OptimizerConfig, betas_of, epsilon_of

_FUSED_DEVICES = ("cuda", "cpu")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, tied ones once, as a group with decay and a group without, in the order of the module.

    Parameters of one dimension (biases, norms) do not decay: decay keeps products of matrices small, which scale and
    shift do not enter. Empty groups are left out.
    """
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[weight_decay if _num_dimensions(parameter) > 1 else 0.0].append(parameter)
    return [{"params": members, "weight_decay": decay} for decay, members in groups.items() if members]


def make_optimizer(module: nn.Module, config: OptimizerConfig, fused: bool | None = None) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`.

    Args:
        fused: one kernel for all parameters. None: where torch has one for their device. It must be False under a
            ``GradScaler`` if gradients are clipped: a fused optimizer divides by the scale itself, after the clipping.
    """
    groups = parameter_groups(module, config.weight_decay)
    if fused is None:
        fused = all(p.device.type in _FUSED_DEVICES for group in groups for p in group["params"])
    betas, epsilon = betas_of(config), epsilon_of(config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=epsilon, fused=fused)


def _num_dimensions(parameter: nn.Parameter) -> int:
    # ZeRO-3 leaves an empty vector in place of every parameter and keeps its shape beside it.
    return len(getattr(parameter, "ds_shape", parameter.shape))
