"""An optimizer's step over the parameters of BERT-base: ours against a loop over the parameters, and against torch's.

Both sides get the same weights and gradients, and the weights that come out are compared. Muon is torch's own and has
no peer. State is what an optimizer keeps, in bytes a parameter.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import CoreShare, interleaved, medians, versions
from benchmarks.record import Result, Table, write_record
from pipeline.config.optimization import OptimizerConfig, betas_of, epsilon_of
from pipeline.config.run import ModelConfig
from pipeline.models.build import build_model
from pipeline.optim.build import make_optimizer

BERT_BASE: Final = ModelConfig(vocab_size=30522)
SMALL: Final = ModelConfig(
    vocab_size=500, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_positions=32
)
CONFIGS: Final = {
    "adamw": OptimizerConfig(name="adamw"),
    "adamw, bf16": OptimizerConfig(name="adamw", state_dtype="bf16"),
    "lamb": OptimizerConfig(name="lamb"),
    "stable_adamw": OptimizerConfig(name="stable_adamw"),
    "lion": OptimizerConfig(name="lion"),
    "muon": OptimizerConfig(name="muon"),
}
SPECIAL_IDS: Final = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
State = dict[str, Tensor]


class Loop:
    """The formulas of `docs/optim.md`, a parameter at a time."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.model, self.config = model, config
        self.betas, self.epsilon = betas_of(config), epsilon_of(config)
        self.states = [{"m": torch.zeros_like(p), "v": torch.zeros_like(p)} for p in model.parameters()]
        self.num_steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.num_steps += 1
        for parameter, state in zip(self.model.parameters(), self.states, strict=True):
            assert parameter.grad is not None
            decay = self.config.weight_decay if parameter.ndim > 1 else 0.0
            RULES[self.config.name](self, parameter, parameter.grad, state, decay)

    def moments(self, g: Tensor, state: State, beta1: float, beta2: float) -> None:
        state["m"].lerp_(g, 1 - beta1)
        state["v"].mul_(beta2).addcmul_(g, g, value=1 - beta2)

    def direction(self, g: Tensor, state: State) -> Tensor:
        beta1, beta2 = self.betas
        self.moments(g, state, beta1, beta2)
        root = (state["v"] / (1 - beta2**self.num_steps)).sqrt_().add_(self.epsilon)
        return (state["m"] / (1 - beta1**self.num_steps)).div_(root)

    def adamw(self, w: Tensor, g: Tensor, state: State, decay: float) -> None:
        update = self.direction(g, state)
        w.mul_(1 - self.config.learning_rate * decay).sub_(update, alpha=self.config.learning_rate)

    def lamb(self, w: Tensor, g: Tensor, state: State, decay: float) -> None:
        update = self.direction(g, state).add_(w, alpha=decay)
        w_norm, u_norm = w.norm(), update.norm()
        ratio = torch.where((w_norm > 0) & (u_norm > 0), w_norm / u_norm, 1.0) if w.ndim > 1 else 1.0
        w.sub_(update * ratio, alpha=self.config.learning_rate)

    def stable_adamw(self, w: Tensor, g: Tensor, state: State, decay: float) -> None:
        t = self.num_steps
        beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in self.betas)
        self.moments(g, state, beta1, beta2)
        root = state["v"].sqrt()
        rms = (g / root.clamp(min=self.epsilon)).square_().mean().sqrt()
        update = (state["m"] / (root + self.epsilon)).add_(w, alpha=decay)
        w.sub_(update * (self.config.learning_rate / rms.clamp(min=1)))

    def lion(self, w: Tensor, g: Tensor, state: State, decay: float) -> None:
        beta1, beta2 = self.betas
        update = state["m"].lerp(g, 1 - beta1).sign_()
        w.mul_(1 - self.config.learning_rate * decay).sub_(update, alpha=self.config.learning_rate)
        state["m"].lerp_(g, 1 - beta2)


RULES: Final[dict[str, Callable[[Loop, Tensor, Tensor, State, float], None]]] = {
    "adamw": Loop.adamw,
    "lamb": Loop.lamb,
    "stable_adamw": Loop.stable_adamw,
    "lion": Loop.lion,
}


def model_with_gradients(shape: ModelConfig, device: torch.device) -> nn.Module:
    """The same weights and gradients at every call."""
    model = build_model(shape, vocab_size=len(SPECIAL_IDS), special_ids=SPECIAL_IDS, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).mul_(1e-3)
    gradients = [parameter.grad for parameter in model.parameters()]
    model.to(device)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.to(device)
    return model


def timed(step: Callable[[], Any], device: torch.device, num_steps: int) -> float:
    """Milliseconds a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / num_steps


def bytes_a_parameter(optimizer: Optimizer, model: nn.Module) -> float:
    """Of the tensors that the optimizer keeps."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return size / sum(parameter.numel() for parameter in model.parameters())


def measure(
    name: str, shape: ModelConfig, device: torch.device, num_steps: int, repetitions: int
) -> tuple[Result, float]:
    """Time a step of one optimizer on both sides; and what it keeps, in bytes a parameter.

    Raises:
        AssertionError: the two sides do not compute the same weights.
    """
    config = CONFIGS[name]
    model = model_with_gradients(shape, device)
    optimizer = make_optimizer(model, config)
    contenders: dict[str, Callable[[], Any]] = {"ours": optimizer.step}
    others: dict[str, nn.Module] = {}
    if config.name in RULES:
        others["loop"] = model_with_gradients(shape, device)
        contenders["loop"] = Loop(others["loop"], config).step
    for _ in range(3):
        for step in contenders.values():
            step()
        for parameter in [*model.parameters(), *(p for other in others.values() for p in other.parameters())]:
            assert parameter.grad is not None
            parameter.grad.mul_(-0.7)  # of the same gradients all moments are alike
    for other in others.values():
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            tolerance = 1e-5 if config.state_dtype == "bf16" else 1e-7
            assert float((one - two).detach().abs().mean()) < tolerance, f"{name}: the two sides differ"
    stopwatches = {key: lambda step=step: timed(step, device, num_steps) for key, step in contenders.items()}
    spent = medians(interleaved(stopwatches, repetitions, name))
    ours = spent.pop("ours")
    return Result(f"optimizer_{name}", "ms a step", "lower", ours, spent), bytes_a_parameter(optimizer, model)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="a smoke test; its numbers say nothing")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = CoreShare()
    shape, num_steps, repetitions = (SMALL, 1, 1) if options.quick else (BERT_BASE, 5, 7)
    measured = {name: measure(name, shape, device, num_steps, repetitions) for name in CONFIGS}
    table = Table(["optimizer", "state, bytes a parameter"], [[name, kept] for name, (_, kept) in measured.items()])
    facts = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    if device.type == "cpu":
        facts |= {"threads": str(torch.get_num_threads()), "share of the cores": f"{share():.2f}"}
    results = [result for result, _ in measured.values()]
    write_record(options.json, "optimizers", versions("torch"), results, {"state": table}, facts)


if __name__ == "__main__":
    main()
