"""Modules that take the place of stock ones which cost more than 5 % of a step (`model.drop_ins`).

Letters: T tokens, F width of the feed-forward layer.

They are put into the finished stock model. They have the parameters of what they replace, by the same names, so that
weights, checkpoints and the export do not show them. Which stock modules were measured and left: docs/performance.md.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

_DOUBLE_SLOPE: Final = 2 * math.sqrt(2 / math.pi)
_CUBIC: Final = 0.044715


class TanhGELU(nn.Module):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), of any shape and dtype (Hendrycks & Gimpel 2016, section 2).

    GPT-2's stock module writes the formula out: eight passes over (T, F), most of which keep an array for the backward
    pass. One kernel keeps the input alone.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and hidden.device.type == "cpu":
            # 0.5 (1 + tanh(u)) = sigmoid(2 u): on a CPU the vector code of exp takes a third of the time of tanh's.
            return hidden * torch.sigmoid(_DOUBLE_SLOPE * hidden * (1 + _CUBIC * hidden * hidden))
        return nn.functional.gelu(hidden, approximate="tanh")


def install_drop_ins(model: nn.Module) -> int:
    """Replace what can be replaced in a stock model; returns how many modules that were."""
    from transformers.activations import GELUTanh, NewGELUActivation

    replaced = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (NewGELUActivation, GELUTanh)):
                setattr(parent, name, TanhGELU())
                replaced += 1
    return replaced
