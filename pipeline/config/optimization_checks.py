"""Ranges and contradictions of optimizer, schedule and muP. Each check yields every problem it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.config.data_checks import data_problems
from pipeline.config.optimization import OPTIMIZERS, OptimizerConfig, ScheduleConfig
from pipeline.config.ranges import at_least, not_negative, positive, share
from pipeline.config.run import RunConfig
from pipeline.config.stages import schedule_in_steps

_ZERO = ("zero1", "zero2", "zero3")
_DECAYS = ("linear", "cosine", "wsd", "polynomial")
"""Schedules that end at `schedule.final_ratio`."""


def optimization_problems(config: RunConfig) -> Iterator[str]:
    """Problems of what changes the weights, and of how fast."""
    yield from _optimizer_problems(config.optimizer)
    yield from _group_problems(config.optimizer)
    yield from _strategy_problems(config)
    yield from _mup_problems(config)
    yield from _schedule_problems(config.schedule)
    if config.schedule.budget_hours is None:
        yield from _step_problems(config)
    else:
        yield from _budget_problems(config.schedule)


def _optimizer_problems(optimizer: OptimizerConfig) -> Iterator[str]:
    yield from positive(optimizer__learning_rate=optimizer.learning_rate)
    yield from not_negative(optimizer__weight_decay=optimizer.weight_decay)
    yield from share(zero=False, optimizer__layer_lr_decay=optimizer.layer_lr_decay)
    for number, beta in enumerate(optimizer.betas or ()):
        if not 0 <= beta < 1:
            yield f"optimizer.betas[{number}]: {beta} is outside [0, 1)."
    if optimizer.epsilon is not None:
        yield from positive(optimizer__epsilon=optimizer.epsilon)
        if OPTIMIZERS[optimizer.name].epsilon is None:
            yield f"optimizer.epsilon: `{optimizer.name}` divides by nothing and has none; leave it out."
    if optimizer.momentum is not None:
        yield from share(one=False, optimizer__momentum=optimizer.momentum)
        if optimizer.name != "muon":
            yield f"optimizer.momentum: only `muon` reads it; `{optimizer.name}` has `optimizer.betas`."


def _group_problems(optimizer: OptimizerConfig) -> Iterator[str]:
    for number, group in enumerate(optimizer.groups):
        where = f"optimizer.groups.{number}"
        if not group.match:
            yield f"{where}.match: required; names of parameters, with `*` for any text, e.g. `*.embeddings.*`."
        numbers = {"learning_rate_scale": group.learning_rate_scale, "weight_decay": group.weight_decay}
        for name, value in numbers.items():
            if value is not None and not (value >= 0 and math.isfinite(value)):
                yield f"{where}.{name}: {value} must be a finite number, 0 or more."


def _strategy_problems(config: RunConfig) -> Iterator[str]:
    optimizer, strategy = config.optimizer, config.train.strategy
    if strategy in _ZERO:
        whole = OPTIMIZERS[optimizer.name].whole_tensors
        if whole is not None:
            yield (
                f"optimizer.name: `{optimizer.name}` computes {whole}, and `{strategy}` gives it flat slices of many "
                "tensors; set train.strategy to `ddp`, or use `adamw` or `lion`."
            )
        if optimizer.state_dtype != "fp32":
            yield (
                f"optimizer.state_dtype: `{optimizer.state_dtype}` does not run under `{strategy}`: DeepSpeed restores "
                "moments as fp32, and without the number of the step that keys their rounding; use `fp32` (ZeRO "
                "divides their memory by the ranks) or train.strategy `ddp`."
            )
    if optimizer.name == "muon" and optimizer.state_dtype != "fp32":
        yield (
            f"optimizer.state_dtype: `{optimizer.state_dtype}`: torch's `muon` keeps its momentum in the weights' "
            "number format; use `fp32`, or another optimizer."
        )


def _mup_problems(config: RunConfig) -> Iterator[str]:
    model, base = config.model, config.model.mup_base_width
    if base is None:
        return
    yield from at_least(1, model__mup_base_width=base)
    if model.family in ("albert", "electra", "bart", "openai-gpt"):
        yield (
            f"model.mup_base_width: muP is not worked out for `{model.family}`; leave it out, or use another family."
        )
    if not OPTIMIZERS[config.optimizer.name].mup:
        yield (
            f"model.mup_base_width: muP's learning rates are those of Adam-like steps, which `{config.optimizer.name}` "
            "does not take; use `adamw`, `stable_adamw` or `lion`, or leave it out."
        )
    if base < 1 or model.num_heads < 1 or model.hidden_size % model.num_heads:
        return
    head_width = model.hidden_size // model.num_heads
    if base % head_width or model.intermediate_size * base % model.hidden_size:
        yield (
            f"model.mup_base_width: {base}: no model of this width has heads of {head_width} and the same proportions. "
            "Under muP the width grows by the number of heads, not by their width (attention is scaled by 1/sqrt of "
            f"it): make {base} a multiple of {head_width}, and intermediate_size x {base} / {model.hidden_size} whole."
        )


def _schedule_problems(schedule: ScheduleConfig) -> Iterator[str]:
    name = schedule.name
    yield from share(schedule__final_ratio=schedule.final_ratio)
    yield from positive(schedule__power=schedule.power)
    if name != "wsd":
        for key in ("decay_steps", "decay_share"):
            if getattr(schedule, key):
                yield f"schedule.{key}: only `wsd` reads it; `{name}` does not have a decay of its own length."
        if schedule.decay_shape != "linear":
            yield f"schedule.decay_shape: only `wsd` reads it, not `{name}`; leave it out."
    if name != "polynomial" and schedule.power != 1:
        yield f"schedule.power: only `polynomial` reads it, not `{name}`; leave it out."
    if name not in _DECAYS and schedule.final_ratio:
        yield f"schedule.final_ratio: `{name}` does not come to an end; leave it out."
    if schedule.warmup_steps and schedule.warmup_tokens:
        yield "schedule.warmup_tokens: `warmup_steps` is there too; give one of them."
    if name == "inverse_sqrt" and not (schedule.warmup_steps or schedule.warmup_tokens or schedule.warmup_share):
        yield "schedule.warmup_steps: `inverse_sqrt` is peak x sqrt(warmup / step), so it needs a warmup."


def _step_problems(config: RunConfig) -> Iterator[str]:
    schedule, steps = config.schedule, config.train.steps
    yield from at_least(0, schedule__warmup_steps=schedule.warmup_steps, schedule__decay_steps=schedule.decay_steps)
    yield from not_negative(schedule__warmup_tokens=schedule.warmup_tokens)
    for key in ("warmup_share", "decay_share"):
        if getattr(schedule, key):
            yield f"schedule.{key}: a share of `schedule.budget_hours`, which is not set; give `{key[:-5]}steps`."
    if schedule.name == "wsd" and schedule.decay_steps < 1:
        yield "schedule.decay_steps: `wsd` needs the length of its final decay, at least 1."
    if not list(data_problems(config)) and math.isfinite(schedule.warmup_tokens):
        schedule = schedule_in_steps(config)
    if schedule.warmup_steps + schedule.decay_steps > steps:
        yield (
            f"schedule: warmup ({schedule.warmup_steps}) and decay ({schedule.decay_steps}) are longer than the run "
            f"(train.steps: {steps})."
        )


def _budget_problems(schedule: ScheduleConfig) -> Iterator[str]:
    yield from positive(schedule__budget_hours=schedule.budget_hours or 0.0)
    yield from share(one=False, schedule__warmup_share=schedule.warmup_share)
    yield from share(schedule__decay_share=schedule.decay_share)
    for key in ("warmup_steps", "warmup_tokens", "decay_steps"):
        if getattr(schedule, key):
            instead = "decay_share" if key == "decay_steps" else "warmup_share"
            yield f"schedule.{key}: this schedule follows `schedule.budget_hours`; give `schedule.{instead}` instead."
    if schedule.name == "wsd" and not schedule.decay_share:
        yield "schedule.decay_share: `wsd` needs the length of its final decay, as a share of schedule.budget_hours."
    if schedule.warmup_share + schedule.decay_share > 1:
        yield (
            f"schedule: warmup_share ({schedule.warmup_share}) and decay_share ({schedule.decay_share}) are together "
            "above 1, the whole budget."
        )
