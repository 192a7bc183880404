"""The sections `optimizer` and `schedule` of a run's config, and what differs between the optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

OptimizerName = Literal["adamw", "lamb", "muon", "stable_adamw", "lion"]
ScheduleName = Literal["linear", "cosine", "wsd", "polynomial", "inverse_sqrt", "constant"]


@dataclass(frozen=True)
class ParameterGroupConfig:
    """Parameters that are trained otherwise than the rest. The first group that matches a parameter counts."""

    match: str = ""
    """Names of parameters as in the exported model, with `*` for any text: `*.embeddings.*`, `transformer.h.0.*`."""

    learning_rate_scale: float = 1.0
    """Their learning rate, as a multiple of the schedule's."""

    weight_decay: float | None = None
    """Their weight decay. Default: as without the group."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, and what differs between parameters: `docs/optim.md` has formulas and settings for each."""

    name: OptimizerName = "adamw"
    """`adamw`; `lamb`, for batches of many thousand rows; `muon` for the matrices of the blocks, AdamW for the rest;
    `stable_adamw`, AdamW with smaller steps at outliers; `lion`, with one moment. ZeRO runs `adamw` and `lion`."""

    learning_rate: float = 1.0e-4
    """Peak learning rate."""

    betas: tuple[float, float] | None = None
    """Decay of the first and second moment (muon: of its AdamW; lion: beta1 and beta2 of the paper). Default:
    `[0.9, 0.999]`; muon: `[0.9, 0.95]`; stable_adamw: `[0.9, 0.98]`; lion: `[0.9, 0.99]`."""

    momentum: float | None = None
    """muon: decay of its momentum. Default: 0.95."""

    epsilon: float | None = None
    """Added to the root of the second moment; lion has none. Default: 1e-8; lamb, stable_adamw: 1e-6."""

    weight_decay: float = 0.01
    """Decoupled decay of weight matrices and embeddings (never biases and norms)."""

    layer_lr_decay: float = 1.0
    """The learning rate falls by this factor a block from the head down to the embeddings (BEiT)."""

    groups: list[ParameterGroupConfig] = field(default_factory=list)
    """Learning rate and weight decay of single parameters, by name."""

    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format of the moments. `bf16`, rounded stochastically, halves their memory; under `single` and `ddp`."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a pure function of the step, or of the share of a time budget that is spent."""

    name: ScheduleName = "linear"
    """After the warmup: `linear`, `cosine` or `polynomial` decay; `wsd`, stable, then a decay at the end;
    `inverse_sqrt`, peak x sqrt(warmup / step); or `constant`."""

    warmup_steps: int = 0
    """Steps of linear warmup from 0, or"""

    warmup_tokens: float = 0.0
    """its length in token slots (rows x sequence length), rounded up to whole steps."""

    warmup_share: float = 0.0
    """Length of the warmup as a share of `budget_hours`, for runs with a budget."""

    decay_steps: int = 0
    """wsd: length of the final decay, or"""

    decay_share: float = 0.0
    """wsd: its length as a share of `budget_hours`, for runs with a budget."""

    decay_shape: Literal["linear", "1-sqrt"] = "linear"
    """wsd: the final decay is straight, or as 1 - sqrt of its done share (Haegele et al. 2024)."""

    power: float = 1.0
    """polynomial: what is left of the decay, to this power; 1 is linear."""

    final_ratio: float = 0.0
    """Learning rate at the last step, as a share of the peak."""

    budget_hours: float | None = None
    """The schedule follows the hours of training instead of the steps, and the run ends when they are spent (Izsak et
    al. 2021) or after `train.steps`. Time between a stop and the next start does not count."""


@dataclass(frozen=True)
class OptimizerFacts:
    """What is known of an optimizer before it is built."""

    betas: tuple[float, float]
    """Default of ``optimizer.betas``."""

    epsilon: float | None
    """Default of ``optimizer.epsilon``; None: it has none."""

    whole_tensors: str | None = None
    """What it computes from a whole tensor; None: every element is updated by itself, so a tensor may be cut."""

    mup: bool = True
    """Its step has the size of the learning rate in every element, as Adam's, so muP's table for Adam holds."""


OPTIMIZERS: Final[Mapping[OptimizerName, OptimizerFacts]] = {
    "adamw": OptimizerFacts(betas=(0.9, 0.999), epsilon=1e-8),
    # You et al. 2020, section 4.
    "lamb": OptimizerFacts(
        betas=(0.9, 0.999), epsilon=1e-6, whole_tensors="the norm of every weight tensor and of its update", mup=False
    ),
    # Liu et al. 2025, of their AdamW.
    "muon": OptimizerFacts(
        betas=(0.9, 0.95), epsilon=1e-8, whole_tensors="an orthogonal matrix from every momentum matrix", mup=False
    ),
    # Warner et al. 2024 (ModernBERT), appendix A.
    "stable_adamw": OptimizerFacts(
        betas=(0.9, 0.98), epsilon=1e-6, whole_tensors="the root mean square of every tensor's update"
    ),
    # Chen et al. 2023, algorithm 2.
    "lion": OptimizerFacts(betas=(0.9, 0.99), epsilon=None),
}


def betas_of(optimizer: OptimizerConfig) -> tuple[float, float]:
    """``optimizer.betas``, or the default of the optimizer."""
    return OPTIMIZERS[optimizer.name].betas if optimizer.betas is None else optimizer.betas


def epsilon_of(optimizer: OptimizerConfig) -> float:
    """``optimizer.epsilon``, or the default of the optimizer; 0 for one without."""
    default = OPTIMIZERS[optimizer.name].epsilon or 0.0
    return default if optimizer.epsilon is None else optimizer.epsilon


def momentum_of(optimizer: OptimizerConfig) -> float:
    """``optimizer.momentum``, or its default."""
    return 0.95 if optimizer.momentum is None else optimizer.momentum
