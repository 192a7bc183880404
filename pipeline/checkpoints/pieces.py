"""Pieces of a run's state, and the file of a rank that holds them.

A piece is a tensor, or a stretch of one that is flattened, under a name that says nothing of ranks: so whoever reads a
checkpoint need not know how many ranks wrote it, nor by which strategy. The file is an ordinary safetensors file
(https://huggingface.co/docs/safetensors, "Format"): whole tensors have their own shape in it; where a stretch belongs
stands in the metadata under ``parts``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

WEIGHT: Final = "weight"
"""Kind of the keys that hold fp32 weights; other kinds are names of the optimizer's state."""

PARTS_KEY: Final = "parts"
DTYPE_NAMES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class Piece:
    """Elements ``offset`` to ``offset + values.numel()`` of a flattened tensor."""

    key: str
    """``weight/NAME`` or, of the optimizer, ``exp_avg/NAME`` and so on; NAME is the stock parameter's."""

    shape: tuple[int, ...]
    """Of the whole tensor."""

    offset: int
    values: Tensor
    """Contiguous, of any shape and on any device; may be a view of the live state."""

    @property
    def is_whole(self) -> bool:
        return self.values.numel() == math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.values.numel() * self.values.element_size()


@dataclass(frozen=True)
class FileLayout:
    """Where everything lies in a file of pieces."""

    header: bytes
    """Length prefix and JSON."""

    starts: tuple[int, ...]
    """Byte of the file at which the values of each piece begin, in the order of the pieces."""

    num_bytes: int
    """Of the whole file."""


def file_layout(pieces: Sequence[Piece]) -> FileLayout:
    """A function of keys, shapes and dtypes alone: as long as these stay the same, so does the layout."""
    # The widest elements first: then each begins at a multiple of its width.
    order = sorted(range(len(pieces)), key=lambda number: -pieces[number].values.element_size())
    positions, end = [0] * len(pieces), 0
    for number in order:
        positions[number] = end
        end += pieces[number].num_bytes
    parts = {piece.key: [piece.offset, list(piece.shape)] for piece in pieces if not piece.is_whole}
    entries = {
        piece.key: {
            "dtype": DTYPE_NAMES[piece.values.dtype],
            "shape": list(piece.shape) if piece.is_whole else [piece.values.numel()],
            "data_offsets": [position, position + piece.num_bytes],
        }
        for piece, position in zip(pieces, positions, strict=True)
    }
    assert len(entries) == len(pieces), "two pieces of one tensor in a file"
    text = json.dumps({"__metadata__": {PARTS_KEY: json.dumps(parts)}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    header = len(text).to_bytes(8, "little") + text
    return FileLayout(header, tuple(len(header) + position for position in positions), len(header) + end)


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
