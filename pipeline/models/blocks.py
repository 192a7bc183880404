"""The blocks of a stock model, and what of them is kept for the backward pass (`train.activation_checkpointing`)."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pipeline.config.run import ActivationCheckpointing

_KEPT_OPERATORS: Final = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "pretrain::segment_attention",
        "torch_attn::_varlen_attn",
    }
)
"""What `selective` does not compute again: nearly all of a block's FLOPs."""


def transformer_blocks(model: nn.Module) -> list[Any]:
    """The blocks of a stock model, an encoder's before those of its decoder: the modules of every list of modules of
    one class that is in no other such list."""
    found: list[Any] = []
    inside: set[int] = set()
    for module in model.modules():  # from the outside to the inside
        if isinstance(module, nn.ModuleList) and id(module) not in inside and len(Counter(map(type, module))) == 1:
            found += module
            inside |= {id(part) for part in module.modules()}
    return found


class CheckpointedForward:
    """The forward of a block, of which only the inputs are kept in training, and what the policy asks for.

    Around the block's own: transformers' switch for it reaches its own way of calling blocks, which changes, and warns
    inside of what is compiled. An object, not a closure, so that copying a model copies the link.
    """

    def __init__(self, block: nn.Module, selective: bool) -> None:
        self.block = block
        self.stock_forward = block.forward
        self.options: dict[str, Any] = {"use_reentrant": False}
        if selective:
            self.options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        if not self.block.training:
            return self.stock_forward(*arguments, **keywords)
        return checkpoint(self.stock_forward, *arguments, **self.options, **keywords)


def checkpoint_activations(model: nn.Module, kept: ActivationCheckpointing) -> None:
    """Have the blocks of a stock model compute again, in the backward pass, what is not kept of the forward pass.

    The same gradients to the bit: dropout draws the same again. `full`: Chen et al. 2016, "Training deep nets with
    sublinear memory cost"; `selective`: Korthikanti et al. 2022, "Reducing activation recomputation in large
    transformer models".

    Args:
        kept: what is kept; `none` leaves the model as it was: everything is. `selective` is wrong where a kept result
            is changed in place, as ZeRO-3's linear layers do when they add the bias; the config's checks refuse that.
    """
    if kept != "none":
        for block in transformer_blocks(model):
            block.forward = CheckpointedForward(block, kept == "selective").forward


def _policy(_: Any, operator: torch._ops.OpOverload, *__: Any, **___: Any) -> CheckpointPolicy:
    kept = operator.name().split(".")[0] in _KEPT_OPERATORS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
