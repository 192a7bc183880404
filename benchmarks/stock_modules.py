"""Stock modules against what could take their place, forward and backward, and what that would save of a block.

Equality is asserted before anything is measured. What saves 5 % of a block is a drop-in
(`pipeline/models/drop_ins.py`); the others stay stock. `docs/performance.md` shows the table.

Letters: T tokens, E width, F width of the feed-forward layer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import CoreShare, interleaved, medians, use_one_core, versions
from benchmarks.record import Result, Table, significant, write_record
from pipeline.base.allocator import keep_freed_memory
from pipeline.config.run import Family, ModelConfig
from pipeline.models.blocks import transformer_blocks
from pipeline.models.build import build_model
from pipeline.models.drop_ins import TanhGELU

Compute = Callable[[Tensor], Tensor]

WORTH_IT: Final = 0.05
"""Share of a block that a drop-in must save."""


@dataclass(frozen=True)
class Scale:
    """How large the blocks are."""

    num_tokens: int
    segment: int
    width: int
    num_heads: int


FULL: Final = {"cpu": Scale(4096, 512, 256, 4), "cuda": Scale(16384, 512, 768, 12)}
QUICK: Final = Scale(64, 32, 16, 2)


@dataclass(frozen=True)
class Candidate:
    """One stock module, and what could take its place."""

    name: str
    family: Family
    width: int
    """Of the input."""

    stock: Compute
    replacement: Compute
    parameters: list[nn.Parameter]


def stock_block(family: Family, scale: Scale, device: str) -> Any:
    """A block of the stock model, without dropout."""
    config = ModelConfig(
        family=family,
        hidden_size=scale.width,
        num_heads=scale.num_heads,
        intermediate_size=4 * scale.width,
        num_layers=1,
        max_positions=scale.segment,
        hidden_dropout=0.0,
        drop_ins=False,
    )
    ids = {name: index for index, name in enumerate(("pad", "cls", "sep", "mask", "bos", "eos", "unk"))}
    model: Any = build_model(config, vocab_size=64, special_ids=ids, seed=0)
    (block,) = transformer_blocks(model.to(device))
    return block


def candidates(blocks: Mapping[str, Any]) -> list[Candidate]:
    """What was tried."""
    attention, mlp = blocks["bert"].attention.self, blocks["gpt2"].mlp
    width = attention.query.in_features
    products = [attention.query, attention.key, attention.value]

    def one_product(hidden: Tensor) -> Tensor:
        weight = torch.cat([product.weight for product in products])  # 3E E
        return linear(hidden, weight, torch.cat([product.bias for product in products]))  # T 3E

    def three_products(hidden: Tensor) -> Tensor:
        return torch.cat([product(hidden) for product in products], -1)  # T 3E

    def transposed(hidden: Tensor) -> Tensor:
        return linear(hidden, mlp.c_fc.weight.t().contiguous(), mlp.c_fc.bias)  # T F

    return [
        Candidate("tanh GELU as one kernel", "gpt2", 4 * width, mlp.act, TanhGELU(), []),
        Candidate(
            "Q, K, V as one product", "bert", width, three_products, one_product,
            [parameter for product in products for parameter in product.parameters()],
        ),
        Candidate("Conv1D as a linear layer", "gpt2", width, mlp.c_fc, transposed, list(mlp.c_fc.parameters())),
    ]  # fmt: skip


class Timer:
    """Forward and backward passes of one shape, in bf16 autocast on CUDA."""

    def __init__(self, num_tokens: int, width: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.device = device
        self.hidden = torch.randn(1, num_tokens, width, generator=generator, device=device).requires_grad_()
        self.direction: Tensor | None = None

    def gradients(self, compute: Compute, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Output, and the gradients of the input and the parameters."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            output = compute(self.hidden)
        if self.direction is None:
            self.direction = torch.randn_like(output)
        return [output.detach(), *torch.autograd.grad(output, [self.hidden, *parameters], self.direction)]

    def milliseconds(self, compute: Compute, parameters: list[nn.Parameter]) -> float:
        """One forward and backward pass."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        self.gradients(compute, parameters)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - before)


def check_equal(candidate: Candidate, timer: Timer) -> None:
    """The replacement computes what the stock module does, but for rounding."""
    limit = 2e-2 if timer.device == "cuda" else 1e-5
    pairs = zip(
        timer.gradients(candidate.replacement, candidate.parameters),
        timer.gradients(candidate.stock, candidate.parameters),
        strict=True,
    )
    for found, expected in pairs:
        error = float((found - expected).norm() / expected.norm())
        assert error < limit, f"{candidate.name} differs by {error:.2g}"


def measure(scale: Scale, device: str, repetitions: int) -> tuple[list[Result], Table]:
    """All candidates beside the time of the block that they are part of."""
    blocks: dict[str, Any] = {
        "bert": stock_block("bert", scale, device),
        "gpt2": stock_block("gpt2", scale, device),
    }
    bounds = torch.arange(0, scale.num_tokens + 1, scale.segment, dtype=torch.int32, device=device)
    segments = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": scale.segment}
    results, rows = [], []
    for candidate in candidates(blocks):
        block, timer = blocks[candidate.family], Timer(scale.num_tokens, candidate.width, device)
        whole = Timer(scale.num_tokens, scale.width, device)
        check_equal(candidate, timer)
        sides = {
            "ours": partial(timer.milliseconds, candidate.replacement, candidate.parameters),
            "stock": partial(timer.milliseconds, candidate.stock, candidate.parameters),
            "block": partial(whole.milliseconds, partial(block, **segments), list(block.parameters())),
        }
        for side in sides.values():
            side()
        spent = medians(interleaved(sides, repetitions, f"{candidate.name} ms"))
        saved = (spent["stock"] - spent["ours"]) / spent["block"]
        results.append(Result(candidate.name, "ms", "lower", spent["ours"], {"stock": spent["stock"]}))
        figures = [significant(spent[side]) for side in ("stock", "ours", "block")]
        rows.append([candidate.name, candidate.family, *figures, f"{saved:.1%}", "yes" if saved >= WORTH_IT else "no"])
    header = ["instead of the stock module", "family", "stock ms", "ms", "whole block ms", "saved", "worth a drop-in"]
    return results, Table(header, rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure; print; write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the record there")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny blocks: a smoke test")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        use_one_core()
        torch.set_num_threads(1)
        keep_freed_memory()  # as a training process does
    share = CoreShare()
    results, table = measure(QUICK if options.quick else FULL[options.device], options.device, options.repetitions)
    facts = {
        "precision": "bf16 autocast" if options.device == "cuda" else "fp32",
        "share of its core that the benchmark had": round(share(), 2),
    }
    tables = {"candidates": table}
    write_record(
        options.json,
        "stock_modules",
        versions("torch", "transformers", "pretrain"),
        results,
        facts=facts,
        tables=tables,
    )


if __name__ == "__main__":
    main()
