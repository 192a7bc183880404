"""Files of pieces: any cut is put together again bit by bit, and what is damaged is named."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.checkpoints.meta import CheckpointMeta, read_meta
from pipeline.checkpoints.pieces import Piece, file_layout, rank_file_name
from pipeline.checkpoints.reading import CheckpointReader, misfits, read_weights
from tests.unit.checkpoints.checkpoint_files import write_meta, write_rank_file

TENSORS: dict[str, Tensor] = {
    "weight/layer.weight": torch.randn(5, 7),
    "exp_avg/layer.weight": torch.randn(5, 7).bfloat16(),
    "weight/layer.bias": torch.randn(7),
    "exp_avg/layer.bias": torch.randn(7).bfloat16(),
    "step/layer.weight": torch.tensor(3.0),
}
"""An odd number of bf16 before fp32: the reader must find each at a multiple of its width."""


def write_checkpoint(directory: Path, ranks: list[list[Piece]]) -> Path:
    directory.mkdir()
    for rank, pieces in enumerate(ranks):
        write_rank_file(directory / rank_file_name(rank), pieces)
    meta = CheckpointMeta(3, 0, "ddp", "fp32", len(ranks), {}, {})
    write_meta(directory, meta)
    return directory


def cut(key: str, first: int, last: int) -> Piece:
    return Piece(key, tuple(TENSORS[key].shape), first, TENSORS[key].view(-1)[first:last])


def whole(key: str) -> Piece:
    return Piece(key, tuple(TENSORS[key].shape), 0, TENSORS[key])


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 35), max_size=4), first=st.integers(0, 34), last=st.integers(0, 35))
def test_every_stretch_of_every_cut_is_read(
    cuts: list[int], first: int, last: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ranks = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 35], strict=True):
        pairs = ((key, min(start, value.numel()), min(end, value.numel())) for key, value in TENSORS.items())
        ranks.append([cut(key, low, high) for key, low, high in pairs if low < high])
    reader = CheckpointReader(write_checkpoint(tmp_path_factory.mktemp("cut") / "checkpoint", ranks))
    for key, value in TENSORS.items():
        found = reader.read(key)
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
    target = torch.full((max(last - first, 0),), math.nan)
    reader.copy_into(target, "weight/layer.weight", first)
    assert torch.equal(target, TENSORS["weight/layer.weight"].view(-1)[first : max(last, first)])


def test_a_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", [[whole(key) for key in TENSORS]])
    with safe_open(checkpoint / "rank-00000.safetensors", "pt") as file:
        assert {key: tuple(file.get_tensor(key).shape) for key in file.keys()} == {  # noqa: SIM118  # no dict
            key: tuple(value.shape) for key, value in TENSORS.items()
        }
    weights = read_weights(checkpoint)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {"layer.weight": (5, 7), "layer.bias": (7,)}


def test_the_layout_depends_on_names_shapes_and_dtypes_alone(tmp_path: Path) -> None:
    pieces = [cut("exp_avg/layer.bias", 2, 5), whole("weight/layer.weight"), whole("step/layer.weight")]
    layout = file_layout(pieces)
    others = [Piece(piece.key, piece.shape, piece.offset, torch.zeros_like(piece.values)) for piece in pieces]
    assert file_layout(others) == layout
    assert write_rank_file(tmp_path / "file", pieces) == layout.num_bytes == (tmp_path / "file").stat().st_size
    content = (tmp_path / "file").read_bytes()
    assert content.startswith(layout.header)
    for piece, start in zip(pieces, layout.starts, strict=True):
        values = torch.frombuffer(bytearray(content[start : start + piece.num_bytes]), dtype=piece.values.dtype)
        assert torch.equal(values, piece.values.reshape(-1))
        assert start % piece.values.element_size() == 0


def test_pieces_that_are_missing_or_overlap(tmp_path: Path) -> None:
    key = "weight/layer.weight"
    for name, ranks, message in (
        ("end", [[cut(key, 0, 20)], [cut(key, 20, 30)]], f"elements 30 to 35 of {key} are in no file"),
        ("begin", [[cut(key, 10, 35)]], f"elements 0 to 10 of {key} are in no file"),
        ("gap", [[cut(key, 0, 20)], [cut(key, 25, 35)]], f"elements 20 to 25 of {key} are in no file"),
        ("overlap", [[cut(key, 0, 20)], [cut(key, 15, 35)]], f"elements 15 to 20 of {key} are in two files"),
        ("twice", [[whole(key)], [whole(key)]], f"elements 0 to 35 of {key} are in two files"),
    ):
        with pytest.raises(UserError, match=rf"{name} is damaged \({message}\)\. Delete the directory to resume"):
            CheckpointReader(write_checkpoint(tmp_path / name, ranks))


def test_damaged_files(tmp_path: Path) -> None:
    key = "weight/layer.weight"
    checkpoint = write_checkpoint(tmp_path / "checkpoint", [[cut(key, 0, 20)], [cut(key, 20, 35)]])
    path = checkpoint / "rank-00001.safetensors"
    content = path.read_bytes()

    def error(written: bytes) -> str:
        path.write_bytes(written)
        with pytest.raises(UserError) as caught:
            CheckpointReader(checkpoint)
        return str(caught.value)

    for end in (0, 4, 20, len(content) - 1):
        assert "is damaged (rank-00001.safetensors: " in error(content[:end])
    assert "is damaged (rank-00001.safetensors: 'parts')" in error(content.replace(b'"parts"', b'"sharp"'))
    assert "offset -2 and shape [5, 7]" in error(content.replace(b"[20,", b"[-2,"))
    other = Piece(key, (7, 5), 20, TENSORS[key].view(-1)[20:])
    path.unlink()
    write_rank_file(path, [other])
    assert "rank-00001.safetensors: weight/layer.weight has shape (7, 5) here and (5, 7) in another file" in error(
        path.read_bytes()
    )
    path.unlink()
    with pytest.raises(UserError, match=r"is damaged \(rank-00001\.safetensors is missing\)"):
        CheckpointReader(checkpoint)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_pickle_in_place_of_a_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", [[whole("weight/layer.weight")]])
    for content in (pickle.dumps(Planted()), b""):
        (checkpoint / "rank-00000.safetensors").write_bytes(content)
        torch.save(Planted(), checkpoint / "trainer.pt")
        with pytest.raises(UserError, match=r"is damaged \(rank-00000\.safetensors: "):
            read_weights(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", [[whole("weight/layer.weight")]])
    meta = json.loads((checkpoint / "meta.json").read_text())
    for version, message in (
        (1, r"has format 1; this version reads 2: go on with the version of pretrain that wrote it, which also export"),
        (3, r"has format 3; this version reads 2: update pretrain"),
    ):
        (checkpoint / "meta.json").write_text(json.dumps({**meta, "format_version": version}))
        with pytest.raises(UserError, match=message):
            read_weights(checkpoint)
    (checkpoint / "meta.json").write_text(json.dumps({"format_version": 2}))
    with pytest.raises(UserError, match=r"is damaged \(meta\.json: TypeError"):
        read_meta(checkpoint)


def test_misfits_are_named() -> None:
    expected: dict[str, tuple[int, ...]] = {"a": (2,), "b": (3, 4), **{f"c{number}": () for number in range(7)}}
    assert misfits(expected, expected) == ""
    assert misfits({"b": (4, 3), "d": ()}, expected) == (
        "missing: a, c0, c1, c2, c3 and 3 more; unknown: d; of another shape: b is (4, 3), not (3, 4)"
    )
