"""A plain GPT and its loop, as small trainers for one GPU write them: tuned for speed, with nothing around.

The model is GPT-2 (Radford et al. 2019): pre-norm blocks (Vaswani et al. 2017; tanh GELU of Hendrycks and Gimpel 2016),
learned positions, head tied to the embedding. Batches are random windows of one long array of tokens, as in nanoGPT.

Letters: B rows, S sequence length, E width, H heads, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.clock import StepClock
from benchmarks.workload import LEARNING_RATE, Hardware, Shape

IGNORED = -100
_VOCABULARY_MULTIPLE = 64


def padded_vocabulary(size: int) -> int:
    """Rows of the embedding that such loops use: the next multiple of 64, as nanoGPT's 50,304."""
    return -(-size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


class _Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, E) -> (B, S, E)."""
        three = self.queries_keys_values(self.norm_1(hidden)).unflatten(-1, (3, self.num_heads, -1))  # B S 3 H E/H
        q, k, v = three.permute(2, 0, 3, 1, 4)  # 3 x B H S E/H
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # B H S E/H
        hidden = hidden + self.project(attended.transpose(1, 2).flatten(2))
        return hidden + self.narrow(functional.gelu(self.widen(self.norm_2(hidden)), approximate="tanh"))


class PlainGpt(nn.Module):
    """The model; its forward pass is the loss.

    Args:
        vocab_size: rows of the embedding; more than the tokenizer has ids where a multiple is faster.
    """

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        width = shape.hidden_size
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(shape.sequence_length, width)
        self.blocks = nn.ModuleList(_Block(width, shape.num_heads) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of int64 ``targets`` (B, S), -100 not counted, given ``inputs`` (B, S)."""
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self.tokens(inputs) + self.positions(positions)  # B S E
        for block in self.blocks:
            hidden = block(hidden)
        logits = functional.linear(self.norm(hidden), self.tokens.weight)  # B S V
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def load_gpt2(model: PlainGpt, weights: Mapping[str, Tensor]) -> None:
    """Take the weights of a stock GPT-2, by their Hugging Face names; rows beyond its vocabulary stay as they are."""
    own = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    with torch.no_grad():
        model.tokens.weight[: len(own["wte.weight"])] = own["wte.weight"]
        model.positions.weight.copy_(own["wpe.weight"])
        _load(model.norm, own, "ln_f")
        for number, block in enumerate(model.blocks):
            _load(block.get_submodule("norm_1"), own, f"h.{number}.ln_1")
            _load(block.get_submodule("norm_2"), own, f"h.{number}.ln_2")
            _load(block.get_submodule("queries_keys_values"), own, f"h.{number}.attn.c_attn")
            _load(block.get_submodule("project"), own, f"h.{number}.attn.c_proj")
            _load(block.get_submodule("widen"), own, f"h.{number}.mlp.c_fc")
            _load(block.get_submodule("narrow"), own, f"h.{number}.mlp.c_proj")


def _load(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    weight = weights[f"{name}.weight"]
    # GPT-2's checkpoints keep matrices as (in, out).
    module.get_parameter("weight").copy_(weight.T if weight.dim() > 1 else weight)
    module.get_parameter("bias").copy_(weights[f"{name}.bias"])


class PlainLoop:
    """The loop: random windows, autocast, fused AdamW, clipping; compiled if asked for.

    Args:
        tokens: one long array of ids, (T,).
    """

    def __init__(
        self,
        model: PlainGpt,
        tokens: NDArray[np.integer],
        num_rows: int,
        hardware: Hardware,
        compiled: bool,
    ) -> None:
        self.device = torch.device(hardware.device)
        self.model = model.to(self.device)
        self.tokens, self.num_rows = tokens, num_rows
        self.sequence_length = model.positions.num_embeddings
        self.use_bf16 = hardware.precision == "bf16"
        self.compute: Any = torch.compile(self.model, fullgraph=True, dynamic=False) if compiled else self.model
        decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
        self.random = np.random.default_rng(0)
        self.ahead = self._windows()

    def _windows(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, S), on their way to the device."""
        starts = self.random.integers(0, len(self.tokens) - self.sequence_length - 1, self.num_rows)
        windows = np.stack([self.tokens[start : start + self.sequence_length + 1] for start in starts])
        both = torch.from_numpy(windows.astype(np.int64))
        if self.device.type == "cuda":
            both = both.pin_memory().to(self.device, non_blocking=True)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One optimizer step; the loss before it, a scalar on the device."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.use_bf16):
            loss = self.compute(inputs, targets)
        self.ahead = self._windows()  # while the device computes
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def seconds_a_step(self, num_steps: int, warmup_steps: int = 1) -> float:
        """Mean over ``num_steps``, after some that are not counted."""
        clock = StepClock(self.device.type)
        for _ in range(warmup_steps + num_steps):
            self.step(*self.ahead)
            clock.tick()
        return clock.seconds_a_step(warmup_steps)
