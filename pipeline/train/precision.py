"""Lightning's precision plugins, as the step loop uses them.

Lightning asks the hooks around backward and the optimizer's step of the module and of every callback by name, which for
a small model costs a tenth of a step. These call the module's, and no callback has any.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, MixedPrecision, Precision

from pipeline.config.run import TrainConfig

_LIGHTNING_NAMES = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class DirectHooks(Precision):
    """Calls the module's hooks, which are there, and nothing else."""

    def pre_backward(self, tensor: torch.Tensor, module: Any) -> torch.Tensor:
        module.on_before_backward(tensor)
        return tensor

    def post_backward(self, tensor: torch.Tensor, module: Any) -> torch.Tensor:
        module.on_after_backward()
        return tensor.detach()  # without the graph

    def _after_closure(self, model: Any, optimizer: Any) -> None:
        model.on_before_optimizer_step(optimizer)
        model.configure_gradient_clipping(optimizer)


class DirectMixedPrecision(MixedPrecision, DirectHooks):
    """bf16, and fp16 with a scaled loss."""


class OnceScaledPrecision(DeepSpeedPrecision, DirectHooks):
    """Keeps DeepSpeed from dividing the loss by the micro-batches: the step loop has already done so.

    As shipped the gradient is divided twice (described in Lightning-AI/pytorch-lightning#6170); Adam hides it, but
    clipping, epsilon and the logged norm do not. `tests/distributed/test_training.py` pins the norm.
    """

    def backward(self, tensor: torch.Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        model.trainer.model.backward(tensor, *args, scale_wrt_gas=False, **kwargs)


def make_precision(train: TrainConfig, device: torch.device, zero: bool) -> Precision:
    """The plugin for ``train.precision``.

    Args:
        zero: whether DeepSpeed trains.
    """
    name: Any = _LIGHTNING_NAMES[train.precision]
    if zero:
        return OnceScaledPrecision(name)
    return DirectHooks() if train.precision == "fp32" else DirectMixedPrecision(name, device.type)
