"""The state of an optimizer, parameter by parameter: what a checkpoint keeps beside the weights."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.optim.foreach import ForeachOptimizer

STEP: Final = "step"
_ADAM: Final = ("exp_avg", "exp_avg_sq")
_MUON: Final = ("momentum_buffer",)


@dataclass(frozen=True)
class ParameterState:
    """The live state of one parameter."""

    moments: dict[str, Tensor]
    """By name, each of the parameter's shape."""

    counter: MutableMapping[str, Any] | None
    """Where the number of steps is, under ``step``: a group's where the optimizer counts for groups; None for muon."""


def parameter_state(optimizer: Optimizer, group: MutableMapping[str, Any], parameter: Tensor) -> ParameterState:
    """The state of a parameter of a group; before its first step made as the optimizer would make it then.

    Args:
        optimizer: of ``make_optimizer``.
        parameter: a member of the group, or what stands for some of them (ZeRO's flat partition).
    """
    if isinstance(optimizer, ForeachOptimizer):
        return ParameterState(optimizer.moments_of(parameter), group)
    state = optimizer.state[parameter]
    names = state_names(optimizer, group)
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(parameter)
    if not counts_steps(group):
        return ParameterState({name: state[name] for name in names}, None)
    if STEP not in state:
        on_device = group["fused"] or group["capturable"]
        state[STEP] = torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
    return ParameterState({name: state[name] for name in names}, state)


def state_names(optimizer: Optimizer, group: MutableMapping[str, Any]) -> tuple[str, ...]:
    """Names of the moments that the optimizer keeps of a group's parameters."""
    if isinstance(optimizer, ForeachOptimizer):
        return optimizer.moments
    return _ADAM if counts_steps(group) else _MUON


def counts_steps(group: MutableMapping[str, Any]) -> bool:
    """Whether the rule of the group depends on how many steps were taken."""
    return group.get("rule") != "muon"
