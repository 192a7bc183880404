"""A snapshot is the file: what safetensors reads of its memory are the values at the moment of the copy."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load

from pipeline.checkpoints.pieces import Piece
from pipeline.checkpoints.snapshot import Snapshot
from tests.unit.checkpoints.test_file_writer import wait_until


def whole(key: str, values: torch.Tensor) -> Piece:
    return Piece(key, tuple(values.shape), 0, values)


def content(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return load(os.pread(snapshot.descriptor, snapshot.num_bytes, 0))


def test_the_memory_is_a_safetensors_file_of_the_values_then() -> None:
    state = {
        "weight/a": torch.randn(3, 5),
        "exp_avg/a": torch.randn(3, 5).bfloat16(),  # an odd number of two bytes: what follows is not aligned by itself
        "step/a": torch.tensor(7.0),
        "weight/b": torch.randn(4, dtype=torch.float64, requires_grad=True),
    }
    expected = {key: values.detach().clone() for key, values in state.items()}
    snapshot = Snapshot()
    snapshot.take([whole(key, values) for key, values in state.items()])
    for values in state.values():
        values.detach().zero_()
    found = content(snapshot)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], values) for key, values in expected.items())
    assert {key: values.dtype for key, values in found.items()} == {key: v.dtype for key, v in expected.items()}
    snapshot.close()


@pytest.mark.parametrize("sizes", [(10, 1000, 10), (1000, 10, 2000), (5, 5, 5)])
def test_memory_is_kept_and_grows(sizes: tuple[int, ...]) -> None:
    snapshot = Snapshot()
    for size in sizes:
        values = torch.randn(size)
        snapshot.take([whole("weight/a", values)])
        assert torch.equal(content(snapshot)["weight/a"], values)
    largest = os.fstat(snapshot.descriptor).st_size
    assert largest - 4 * max(sizes) < 200, "the header, no more"
    snapshot.close()


def test_a_rank_that_owns_nothing_has_an_empty_file() -> None:
    snapshot = Snapshot()
    snapshot.take([])
    assert content(snapshot) == {}
    snapshot.close()


def test_reserved_memory_is_there_before_the_first_snapshot() -> None:
    pieces = [whole("weight/a", torch.randn(20 << 20))]
    snapshot = Snapshot()
    snapshot.reserve(pieces)
    wait_until(lambda: 512 * os.fstat(snapshot.descriptor).st_blocks >= 80 << 20)  # pages that the system has given
    snapshot.take(pieces)
    assert torch.equal(content(snapshot)["weight/a"], pieces[0].values)
    snapshot.close()
