"""`train.compile`: encoder, head and loss in one graph, compiled once since every shape is static."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import Any

import torch

from pipeline.base.errors import UserError
from pipeline.objectives.loss import packed_loss_sum
from pipeline.train.module import PretrainModule

_SPARE_GRAPHS = 6  # of torch's own 8: it stops a run that compiles more than it is allowed
_COMPILERS = ("g++", "c++", "clang++")


def check_compiler(device: torch.device) -> None:
    """On CPU, torch.compile writes C++.

    Raises:
        UserError: there is no C++ compiler.
    """
    if device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, _COMPILERS))):
        raise UserError(
            f"train.compile: true needs a C++ compiler on a CPU, and none of {', '.join(_COMPILERS)} is on PATH; "
            "install one (Debian: apt-get install g++) or set train.compile to false."
        )


def compile_step(module: PretrainModule) -> None:
    """Compile what a step computes.

    ZeRO-3 gathers weights in module hooks, which a graph cannot hold: there each block is made a leaf, gathered whole
    before it, and compiled by itself. Every stage has its own shapes, for training and for validation.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * len(module.plan.micro_rows) + _SPARE_GRAPHS)
    if module.config.train.strategy != "zero3":
        module.loss_function = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False)
        return
    from deepspeed.utils import set_z3_leaf_modules

    blocks = transformer_blocks(module.model)
    set_z3_leaf_modules(module.model, [type(blocks[0])])
    for block in blocks:
        # Its forward, not the block: the hooks must stay outside the graph.
        block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)


def transformer_blocks(model: torch.nn.Module) -> list[Any]:
    """The blocks of a stock model: the longest list of modules of one class in it."""
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    uniform = [blocks for blocks in lists if len(Counter(map(type, blocks))) == 1]
    return max(uniform, key=len)
