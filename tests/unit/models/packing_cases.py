"""Tiny models and hand-made packed rows for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.config.run import Family, ModelConfig

VOCAB_SIZE = 97
SPECIAL_IDS = {"pad": 1, "cls": 0, "sep": 2, "mask": 4, "bos": 0, "eos": 2, "unk": 3}
FAMILIES: tuple[Family, ...] = ("bert", "roberta", "distilbert", "albert", "electra", "modernbert", "gpt2")


def tiny_config(family: Family, **changes: Any) -> ModelConfig:
    """Two layers of width 24; no dropout, so that two ways to compute can be compared."""
    settings: dict[str, Any] = {
        "family": family,
        "hidden_size": 24,
        "num_layers": 2,
        "num_heads": 3,
        "intermediate_size": 40,
        "max_positions": 32,
        "hidden_dropout": 0.0,
        "initializer_range": 0.2,
    }
    if family == "electra":
        settings["extra"] = {"embedding_size": 16}  # which a layer widens
    if family == "modernbert":
        settings["extra"] = {"local_attention": 8}  # of the second layer: shorter than most segments
    return ModelConfig(**{**settings, **changes})


@dataclass
class PackedCase:
    """Rows of ``row_length`` slots given as lists of segment lengths, flattened as a batch would be."""

    rows: list[list[int]]
    row_length: int = 32
    cu_capacity: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        total = len(self.rows) * self.row_length
        self.input_ids = torch.full((1, total), SPECIAL_IDS["pad"])
        self.position_ids = torch.zeros(1, total, dtype=torch.int64)
        self.segments: list[slice] = []
        bounds = [0]
        for number, lengths in enumerate(self.rows):
            start, end = number * self.row_length, (number + 1) * self.row_length
            for length in lengths:
                segment = slice(start, start + length)
                self.input_ids[0, segment] = torch.randint(5, VOCAB_SIZE, (length,), generator=generator)
                self.segments.append(segment)
                start += length
                bounds.append(start)
            if start < end:
                bounds.append(end)
        for first, last in pairwise(bounds):
            self.position_ids[0, first:last] = torch.arange(last - first)
        bounds += [total] * (self.cu_capacity - len(bounds))
        self.cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
        real = torch.cat([torch.arange(s.start, s.stop) for s in self.segments])
        chosen = torch.rand(len(real), generator=generator) < 0.4
        self.predicted = real[chosen]
        self.labels = torch.randint(0, VOCAB_SIZE, (len(self.predicted),), generator=generator)

    def padded_predictions(self, capacity: int) -> tuple[Tensor, Tensor]:
        """Positions filled up with the first others, ascending, and labels with -100 there."""
        labels = torch.full((self.input_ids.shape[1],), -100)
        labels[self.predicted] = self.labels
        others = torch.nonzero(labels == -100).flatten()[: capacity - len(self.predicted)]
        positions = torch.cat([self.predicted, others]).sort().values
        return positions, labels[positions]
