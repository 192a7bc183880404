"""`train.compile`: encoder, head and loss in one graph, compiled once since every shape is static."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.config.run import TrainConfig
from pipeline.models.blocks import transformer_blocks
from pipeline.objectives.loss import as_terms
from pipeline.train.module import PretrainModule

_SPARE_GRAPHS = 6  # of torch's own 8: it stops a run that compiles more than it is allowed
# What torch.compile writes, for which its environment variable may name a compiler, else one of these is looked for.
_LANGUAGES = {"cpu": ("C++", "CXX", ("g++", "c++", "clang++")), "cuda": ("C", "CC", ("gcc", "clang"))}


def prepare_compiler(train: TrainConfig, device: torch.device) -> None:
    """Find the compiler, and keep what it makes in ``train.compile_cache``; before anything is compiled.

    Raises:
        UserError: there is no compiler, for the kernels on a CPU or what starts them on CUDA; CUDA graphs without CUDA;
            the directory cannot be written.
    """
    language, variable, compilers = _LANGUAGES[device.type]
    if not (os.environ.get(variable) or any(map(shutil.which, compilers))):
        raise UserError(
            f"train.compile: true needs a {language} compiler on this device ({device.type}), and none of "
            f"{', '.join(compilers)} is on PATH; install one (Debian: apt-get install {compilers[0]}) or set "
            "train.compile to false."
        )
    if device.type == "cpu" and train.compile_mode == "reduce-overhead":
        raise UserError(
            "train.compile_mode: `reduce-overhead` replays CUDA graphs, and this run is on a CPU; use `default`."
        )
    directory = Path(os.path.expandvars(train.compile_cache)).expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"train.compile_cache: {directory} cannot be made or written ({error.strerror}); name a directory on a "
            "disk of this node, e.g. `$TMPDIR/compile`."
        ) from error
    # torch looks here at every compilation; Triton's kernels go into a folder below.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory)


def compile_step(module: PretrainModule) -> None:
    """Compile what a step computes.

    ZeRO-3 gathers weights in module hooks, which a graph cannot hold: there each block is made a leaf, gathered whole
    before it, and compiled by itself. Every stage has its own shapes, for training and for validation.
    """
    train = module.config.train
    dynamo = torch._dynamo.config
    # To train and to validate, of usual and of many segments; the objectives of a mixture have their own.
    graphs = 2 * 2 * len(module.plan.micro_rows) * len(module.loss.tasks)
    dynamo.recompile_limit = max(dynamo.recompile_limit, graphs + _SPARE_GRAPHS)
    if train.strategy != "zero3":
        copied = train.compile_mode == "reduce-overhead"
        module.keeps_gradients = copied
        module.loss = module.loss.with_functions(
            lambda function: _copied(_compiled(function, train)) if copied else _compiled(function, train)
        )
        return
    from deepspeed.utils import set_z3_leaf_modules

    blocks = transformer_blocks(module.model)
    set_z3_leaf_modules(module.model, list({type(block): None for block in blocks}))
    for block in blocks:
        # Its forward, not the block: the hooks must stay outside the graph.
        block.forward = _compiled(block.forward, train)


def _compiled(function: Callable[..., Any], train: TrainConfig) -> Callable[..., Any]:
    mode = None if train.compile_mode == "default" else train.compile_mode
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def _copied(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """The same with the sums in memory of their own: a CUDA graph's is written again by the next micro-batch."""

    def loss_function(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(term.clone() for term in as_terms(compiled(*arguments)))

    return loss_function
