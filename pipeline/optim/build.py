"""The optimizer that a config names, over the parameters of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.config.optimization import OptimizerConfig, betas_of, epsilon_of, momentum_of
from pipeline.optim.adamw import AdamW
from pipeline.optim.groups import parameter_groups
from pipeline.optim.lamb import Lamb
from pipeline.optim.lion import Lion
from pipeline.optim.muon import MuonWithAdamW
from pipeline.optim.stable_adamw import StableAdamW

_FUSED_DEVICES: Final = ("cuda", "cpu")
_STATE_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_optimizer(
    module: nn.Module,
    config: OptimizerConfig,
    fused: bool | None = None,
    mup_scales: Mapping[str, float] | None = None,
) -> Optimizer:
    """The optimizer over :func:`~pipeline.optim.groups.parameter_groups`, at the peak learning rate.

    Args:
        fused: torch's AdamW as one kernel for all parameters. None: where torch has one for their device. It must be
            False under a ``GradScaler`` if gradients are clipped: torch's fused AdamW divides by the scale itself,
            after the clipping. The other optimizers, muon's AdamW too, get gradients that the scaler has divided.
        mup_scales: learning-rate scales by parameter name, from ``pipeline.models.mup``.
    """
    groups = parameter_groups(module, config, mup_scales or {})
    for group in groups:
        group["lr"] = config.learning_rate * group["lr_scale"]
    if fused is None:
        fused = all(p.device.type in _FUSED_DEVICES for group in groups for p in group["params"])
    return _BUILDERS[config.name](groups, config, fused)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> Optimizer:
    if config.state_dtype != "fp32":
        return AdamW(groups, _adam_settings(config), _STATE_DTYPES[config.state_dtype])
    return torch.optim.AdamW(groups, **_adam_settings(config), fused=fused)


def _lamb(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> Optimizer:
    return Lamb(groups, _adam_settings(config), _STATE_DTYPES[config.state_dtype])


def _stable_adamw(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> Optimizer:
    return StableAdamW(groups, _adam_settings(config), _STATE_DTYPES[config.state_dtype])


def _lion(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> Optimizer:
    settings = {"lr": config.learning_rate, "betas": betas_of(config)}
    return Lion(groups, settings, _STATE_DTYPES[config.state_dtype])


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> Optimizer:
    return MuonWithAdamW(
        groups,
        lr=config.learning_rate,
        momentum=momentum_of(config),
        betas=betas_of(config),
        epsilon=epsilon_of(config),
        fused=fused,
    )


def _adam_settings(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "betas": betas_of(config), "eps": epsilon_of(config)}


_BUILDERS: Final[Mapping[str, Callable[[list[dict[str, Any]], OptimizerConfig, bool], Optimizer]]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": _muon,
    "stable_adamw": _stable_adamw,
    "lion": _lion,
}
