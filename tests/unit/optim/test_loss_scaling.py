"""fp16: gradients scaled by a GradScaler and clipped as a run clips them give the steps of gradients that are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.optimization import OptimizerConfig, OptimizerName
from pipeline.optim.build import make_optimizer

NAMES: tuple[OptimizerName, ...] = ("adamw", "lamb", "stable_adamw", "lion", "muon")


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), "head": nn.Linear(4, 2)})


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)) * (float("inf") if step == 3 else 30.0)
    for layer in model["layer"]:
        x = layer(x).tanh()
    return model["head"](x).square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_scaled_and_clipped_steps_are_the_same(name: OptimizerName) -> None:
    """As Lightning orders it: unscale unless the optimizer does so itself, clip, step unless a gradient overflowed."""
    config = OptimizerConfig(name=name, learning_rate=0.01)
    scaled, plain = model_of(), model_of()
    optimizer, reference = make_optimizer(scaled, config, fused=False), make_optimizer(plain, config, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    for step in range(6):
        for one in (optimizer, reference):
            one.zero_grad()
        scaler.scale(loss_of(scaled, step)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(scaled.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        if step != 3:  # its gradients are not finite: the scaled run skips it, in the state too
            loss_of(plain, step).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
            reference.step()
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
