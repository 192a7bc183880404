"""Reading a checkpoint: any stretch of any of its tensors, whatever ranks wrote the pieces.

Files are mapped into memory and nothing is unpickled: a file holds numbers and their names, or it is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.checkpoints.meta import WAY_OUT, CheckpointMeta, damaged, read_meta
from pipeline.checkpoints.pieces import PARTS_KEY, WEIGHT, rank_file_name

_MOST_NAMES = 5


@dataclass(frozen=True)
class _Part:
    offset: int
    num_elements: int
    file: Any
    """An open ``safetensors.safe_open``."""


class CheckpointReader:
    """The tensors of a checkpoint by key; a value is read from disk when it is asked for.

    Args:
        way_out: what to do about a damaged one, for the messages.

    Raises:
        UserError: a file is missing, truncated or no safetensors file; pieces are missing, overlap, or contradict each
            other; the format is another one.
    """

    def __init__(self, directory: Path, way_out: str = WAY_OUT) -> None:
        self.directory = directory
        self.meta: CheckpointMeta = read_meta(directory, way_out)
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Whole shapes by key."""
        self._way_out = way_out
        self._parts: dict[str, list[_Part]] = {}
        for rank in range(self.meta.world_size):
            self._open(rank_file_name(rank))
        for key, parts in self._parts.items():
            parts.sort(key=lambda part: part.offset)
            self._check_whole(key, parts)

    def read(self, key: str) -> Tensor:
        """The whole tensor, in its own shape, in memory of its own."""
        (first, *_) = self._parts[key]
        values = torch.empty(math.prod(self.shapes[key]), dtype=first.file.get_tensor(key).dtype)
        self.copy_into(values, key)
        return values.view(self.shapes[key])

    def copy_into(self, target: Tensor, key: str, offset: int = 0) -> None:
        """Fill ``target`` with as many elements of the flattened tensor, from ``offset`` on.

        Args:
            target: (n,) of any dtype and device; values are converted as ``Tensor.copy_`` does.
        """
        end = offset + target.numel()
        for part in self._parts[key]:
            first, last = max(part.offset, offset), min(part.offset + part.num_elements, end)
            if first < last:
                values = part.file.get_tensor(key).view(-1)  # a view of the mapped file: what is not copied is not read
                target[first - offset : last - offset].copy_(values[first - part.offset : last - part.offset])

    def weights(self) -> dict[str, Tensor]:
        """All weights in fp32 by the stock parameters' names, tied ones once."""
        names = (key.removeprefix(f"{WEIGHT}/") for key in self.shapes if key.startswith(f"{WEIGHT}/"))
        return {name: self.read(f"{WEIGHT}/{name}") for name in names}

    def _open(self, name: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(self.directory / name, "pt")
            for key, offset, num_elements, shape in _pieces_in(file):
                if self.shapes.setdefault(key, shape) != shape:
                    raise ValueError(f"{key} has shape {shape} here and {self.shapes[key]} in another file")
                self._parts.setdefault(key, []).append(_Part(offset, num_elements, file))
        except FileNotFoundError:
            raise self._damaged(f"{name} is missing") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{name}: {error}") from None

    def _check_whole(self, key: str, parts: list[_Part]) -> None:
        end, total = 0, math.prod(self.shapes[key])
        for part in parts:
            if part.offset != end:
                what = "are in no file" if part.offset > end else "are in two files"
                raise self._damaged(f"elements {min(end, part.offset)} to {max(end, part.offset)} of {key} {what}")
            end += part.num_elements
        if end != total:
            raise self._damaged(f"elements {min(end, total)} to {max(end, total)} of {key} are in no file")

    def _damaged(self, why: str) -> UserError:
        return UserError(damaged(self.directory, why, self._way_out))


def read_weights(directory: Path, way_out: str = WAY_OUT) -> dict[str, Tensor]:
    """The weights of a checkpoint, fp32, by the stock parameters' names, tied ones once.

    Raises:
        UserError: see :class:`CheckpointReader`.
    """
    return CheckpointReader(directory, way_out).weights()


def misfits(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What keeps tensors from being those that are expected, by name and shape; empty where they are."""
    other_shapes = [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = (
        ("missing", sorted(expected.keys() - found.keys())),
        ("unknown", sorted(found.keys() - expected.keys())),
        ("of another shape", other_shapes),
    )
    return "; ".join(f"{what}: {some_of(names)}" for what, names in problems if names)


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _pieces_in(file: Any) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
    """Key, offset, number of elements and whole shape of every piece of an open file."""
    metadata = file.metadata() or {}
    parts = json.loads(metadata[PARTS_KEY])
    keys: list[str] = file.keys()
    for key in keys:
        shape = tuple(file.get_slice(key).get_shape())
        num_elements = math.prod(shape)
        offset, whole = parts.get(key, (0, shape))
        if type(offset) is not int or offset < 0 or any(type(size) is not int or size < 0 for size in whole):
            raise ValueError(f"offset {offset!r} and shape {whole!r} of {key} are no sizes")
        yield key, offset, num_elements, tuple(whole)
