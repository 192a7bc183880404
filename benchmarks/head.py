"""The vocabulary head and its loss by themselves, forward and backward: time, and most memory beside the gradients.

Ours, chunk by chunk, against whole logits as the stock classes compute them, and against the chunked path of torch's
``linear_cross_entropy`` where torch has it. Loss and gradients are compared before anything is measured.

Letters: P positions, E width, V vocabulary.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import CoreShare, drop_free_memory, interleaved, medians, use_one_core, versions
from benchmarks.record import Result, write_record
from pipeline.models.head_loss import linear_cross_entropy_sum

IGNORED_EVERY: Final = 50
"""So seldom is a prediction slot empty."""

LossSum = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One head."""

    name: str
    num_positions: int
    width: int
    vocabulary: int
    has_bias: bool


CASES: Final = {
    "cpu": (Case("bert", 640, 256, 30522, True), Case("gpt2", 2048, 256, 50257, False)),
    "cuda": (Case("bert", 4992, 768, 30522, True), Case("gpt2", 16384, 768, 50257, False)),
}
QUICK: Final = (Case("bert", 40, 16, 300, True), Case("gpt2", 64, 16, 300, False))


def whole_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """As the stock classes: all logits, the loss in fp32."""
    return cross_entropy(linear(hidden, weight, bias).float(), labels, reduction="sum")


def torch_chunked(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """torch's own chunks, with its default options, in the dtype of autocast."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return torch.nn.functional.linear_cross_entropy(
        hidden.to(dtype),
        weight.to(dtype),
        labels,
        linear_bias=None if bias is None else bias.to(dtype),
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(),
    )


def contenders() -> dict[str, LossSum]:
    """Ours first."""
    found: dict[str, LossSum] = {"ours": linear_cross_entropy_sum, "whole logits": whole_logits}
    if hasattr(torch.nn.functional, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["torch's linear_cross_entropy"] = torch_chunked
    return found


class Head:
    """A head with random weights and hidden states; on CUDA in bf16 autocast."""

    def __init__(self, case: Case, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).mul_(scale).requires_grad_()

        self.device = device
        self.hidden = normal(case.num_positions, case.width, scale=1.0)
        self.weight = normal(case.vocabulary, case.width, scale=0.02)
        self.bias = normal(case.vocabulary, scale=0.1) if case.has_bias else None
        self.labels = torch.randint(case.vocabulary, (case.num_positions,), generator=generator, device=device)
        self.labels[::IGNORED_EVERY] = -100

    def loss_and_gradients(self, loss_sum: LossSum) -> list[Tensor]:
        """Loss and gradients, computed anew."""
        leaves = [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]
        for leaf in leaves:
            leaf.grad = None
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            loss = loss_sum(self.hidden, self.weight, self.bias, self.labels)
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def milliseconds(self, loss_sum: LossSum) -> float:
        """One forward and backward pass."""
        self._wait()
        before = time.perf_counter()
        self.loss_and_gradients(loss_sum)
        self._wait()
        return 1e3 * (time.perf_counter() - before)

    def megabytes(self, loss_sum: LossSum) -> float:
        """Most memory during a forward and backward pass, above what stands before it."""
        self.loss_and_gradients(loss_sum)  # what a first call allocates for good
        for leaf in (self.hidden, self.weight, self.bias):
            if leaf is not None:
                leaf.grad = None
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.loss_and_gradients(loss_sum)
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        drop_free_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the high-water mark
        before = _status_megabytes("VmRSS")
        self.loss_and_gradients(loss_sum)
        return _status_megabytes("VmHWM") - before

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _status_megabytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e6


def check_equal(head: Head) -> None:
    """Loss and gradients of all contenders are those of whole logits, but for rounding."""
    limit = 2e-2 if head.device == "cuda" else 1e-4
    truth = head.loss_and_gradients(whole_logits)
    for name, loss_sum in contenders().items():
        for found, expected in zip(head.loss_and_gradients(loss_sum), truth, strict=True):
            error = float((found - expected).norm() / expected.norm())
            assert error < limit, f"{name} differs by {error:.2g}"


def measure(case: Case, device: str, repetitions: int) -> list[Result]:
    """Time and memory of one head."""
    head = Head(case, device)
    check_equal(head)
    sides = contenders()
    for loss_sum in sides.values():
        head.milliseconds(loss_sum)
    spent = medians(
        interleaved(
            {name: lambda loss_sum=loss_sum: head.milliseconds(loss_sum) for name, loss_sum in sides.items()},
            repetitions,
            f"{case.name} ms",
        )
    )
    most = {name: head.megabytes(loss_sum) for name, loss_sum in sides.items()}
    return [
        Result(f"{case.name}_time", "ms", "lower", spent.pop("ours"), spent),
        Result(f"{case.name}_memory", "MB", "lower", most.pop("ours"), most),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure; print; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record there")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny heads: a smoke test")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        use_one_core()
        torch.set_num_threads(1)
    share = CoreShare()
    cases = QUICK if options.quick else CASES[options.device]
    results = [result for case in cases for result in measure(case, options.device, options.repetitions)]
    shapes = [
        f"{case.name}: {case.num_positions} positions, width {case.width}, vocabulary {case.vocabulary}"
        for case in cases
    ]
    facts = {
        "heads": shapes,
        "precision": "bf16 autocast" if options.device == "cuda" else "fp32",
        "share of its core that the benchmark had": round(share(), 2),
    }
    write_record(options.json, "head", versions("torch", "pretrain"), results, facts=facts)


if __name__ == "__main__":
    main()
