"""The optimizers as their papers write them: one parameter at a time, scalars by hand, moments in full precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[..., Tensor]
"""(weight, gradient, state, number of the step from 1, settings) -> weight; ``state`` is a dict of its own."""


def adamw(w: Tensor, g: Tensor, state: dict[str, Tensor], t: int, s: dict[str, float]) -> Tensor:
    """Loshchilov and Hutter 2019, algorithm 2."""
    m = state["m"] = s["beta1"] * state.get("m", 0 * g) + (1 - s["beta1"]) * g
    v = state["v"] = s["beta2"] * state.get("v", 0 * g) + (1 - s["beta2"]) * g**2
    direction = (m / (1 - s["beta1"] ** t)) / ((v / (1 - s["beta2"] ** t)).sqrt() + s["eps"])
    return w - s["lr"] * direction - s["lr"] * s["decay"] * w


def lamb(w: Tensor, g: Tensor, state: dict[str, Tensor], t: int, s: dict[str, float]) -> Tensor:
    """You et al. 2020, algorithm 2, phi the identity; no trust ratio for vectors."""
    m = state["m"] = s["beta1"] * state.get("m", 0 * g) + (1 - s["beta1"]) * g
    v = state["v"] = s["beta2"] * state.get("v", 0 * g) + (1 - s["beta2"]) * g**2
    u = (m / (1 - s["beta1"] ** t)) / ((v / (1 - s["beta2"] ** t)).sqrt() + s["eps"]) + s["decay"] * w
    w_norm, u_norm = float((w**2).sum()) ** 0.5, float((u**2).sum()) ** 0.5
    ratio = w_norm / u_norm if w.ndim > 1 and w_norm > 0 and u_norm > 0 else 1.0
    return w - s["lr"] * ratio * u


def stable_adamw(w: Tensor, g: Tensor, state: dict[str, Tensor], t: int, s: dict[str, float]) -> Tensor:
    """Wortsman et al. 2023, algorithm 2."""
    b1 = s["beta1"] * (1 - s["beta1"] ** (t - 1)) / (1 - s["beta1"] ** t)
    b2 = s["beta2"] * (1 - s["beta2"] ** (t - 1)) / (1 - s["beta2"] ** t)
    m = state["m"] = b1 * state.get("m", 0 * g) + (1 - b1) * g
    v = state["v"] = b2 * state.get("v", 0 * g) + (1 - b2) * g**2
    rms = math.sqrt(float((g**2 / torch.maximum(v, torch.full_like(v, s["eps"] ** 2))).mean()))
    lr = s["lr"] / max(1.0, rms)
    return w - lr * s["decay"] * w - lr * m / (v.sqrt() + s["eps"])


def lion(w: Tensor, g: Tensor, state: dict[str, Tensor], t: int, s: dict[str, float]) -> Tensor:
    """Chen et al. 2023, algorithm 2."""
    m = state.get("m", 0 * g)
    c = s["beta1"] * m + (1 - s["beta1"]) * g
    state["m"] = s["beta2"] * m + (1 - s["beta2"]) * g
    return w - s["lr"] * (c.sign() + s["decay"] * w)


def muon(w: Tensor, g: Tensor, state: dict[str, Tensor], t: int, s: dict[str, float]) -> Tensor:
    """Jordan et al. 2024 (momentum as a mean, Nesterov), scaled as in Liu et al. 2025, equation 4."""
    m = state["m"] = s["momentum"] * state.get("m", 0 * g) + (1 - s["momentum"]) * g
    update = s["momentum"] * m + (1 - s["momentum"]) * g
    scale = 0.2 * math.sqrt(max(w.shape))
    return w * (1 - s["lr"] * s["decay"]) - s["lr"] * scale * newton_schulz(update)


def newton_schulz(x: Tensor) -> Tensor:
    """Five steps of Jordan's quintic iteration in bf16, as published."""
    y = x.bfloat16()
    transposed = y.shape[0] > y.shape[1]
    y = y.T if transposed else y
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(5):
        a = y @ y.T
        y = torch.addmm(y, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), y, beta=3.4445)
    return (y.T if transposed else y).to(x.dtype)


RULES: dict[str, Rule] = {"adamw": adamw, "lamb": lamb, "stable_adamw": stable_adamw, "lion": lion}
