"""Parameter groups: what of learning rate, weight decay and rule differs between the parameters of a model."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

from torch import nn

from pipeline.config.optimization import OptimizerConfig

_NO_SCALES: Final[Mapping[str, float]] = MappingProxyType({})


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, mup_scales: Mapping[str, float] = _NO_SCALES
) -> list[dict[str, Any]]:
    """Trainable parameters, tied ones once, in as few groups as their settings allow, in the order of the module.

    A group's learning rate is the schedule's times its ``lr_scale``. Parameters of one dimension (biases, norms) do not
    decay: decay keeps products of matrices small, which scale and shift do not enter.

    Args:
        mup_scales: learning-rate scales of muP by name. Weight decay, a group's own too, is divided by them: what a
            step takes off a weight is learning rate x decay, which stays the same at every width (as in the mup package
            of the authors).

    Returns:
        Dicts for a torch optimizer: ``params``, ``weight_decay``, ``lr_scale``; for muon ``rule`` ("muon" or "adamw");
        for lamb ``trust_ratio`` (whether a parameter's step is scaled by it).
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    depths = _depths(module, [name for name, _ in trainable])
    top = max(depths.values(), default=0)
    groups: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
    for name, parameter in trainable:
        is_matrix = _num_dimensions(parameter) > 1
        decay = config.weight_decay if is_matrix else 0.0
        scale = config.layer_lr_decay ** (top - depths[name])
        own = _own_group(name, config)
        if own is not None:
            group = config.groups[own]
            scale *= group.learning_rate_scale
            decay = decay if group.weight_decay is None else group.weight_decay
        mup = mup_scales.get(name, 1.0)
        settings: dict[str, Any] = {"weight_decay": decay / mup, "lr_scale": scale * mup}
        if config.name == "muon":
            settings["rule"] = "muon" if is_matrix and 0 < depths[name] < top else "adamw"
        if config.name == "lamb":
            settings["trust_ratio"] = is_matrix
        groups.setdefault(tuple(settings.items()), []).append(parameter)
    return [{"params": members, **dict(settings)} for settings, members in groups.items()]


def unused_patterns(module: nn.Module, config: OptimizerConfig) -> list[str]:
    """Patterns of ``optimizer.groups`` that no parameter is taken by: a word is wrong, or earlier groups have them."""
    used = {_own_group(name, config) for name, _ in module.named_parameters()}
    return [group.match for number, group in enumerate(config.groups) if number not in used]


def _own_group(name: str, config: OptimizerConfig) -> int | None:
    return next((number for number, group in enumerate(config.groups) if fnmatchcase(name, group.match)), None)


def _depths(module: nn.Module, names: list[str]) -> dict[str, int]:
    """0 for embeddings, 1 .. L for the blocks, L + 1 for what comes after them (BEiT, Bao et al. 2022, appendix)."""
    tables = {
        f"{owner}.{name}"
        for owner, part in module.named_modules()
        if isinstance(part, nn.Embedding)
        for name, _ in part.named_parameters()
    }
    blocks = {name: _block_number(name) for name in names}
    num_blocks = max((number + 1 for number in blocks.values() if number is not None), default=0)
    depths = {}
    for name, number in blocks.items():
        if number is not None:
            depths[name] = number + 1
        else:
            depths[name] = 0 if name in tables or ".embeddings." in f".{name}" else num_blocks + 1
    return depths


def _block_number(name: str) -> int | None:
    """Number of the block that a parameter is in: ``bert.encoder.layer.3.output.dense.weight`` -> 3."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _num_dimensions(parameter: nn.Parameter) -> int:
    # ZeRO-3 leaves an empty vector in place of every parameter and keeps its shape beside it.
    return len(getattr(parameter, "ds_shape", parameter.shape))
