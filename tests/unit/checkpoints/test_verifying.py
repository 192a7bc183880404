"""Every kind of damage is found and named; another format is none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.checkpoints.meta import checkpoint_directory
from pipeline.checkpoints.verifying import damage_of, newest_intact
from tests.unit.checkpoints.checkpoint_cases import flip_byte, write_checkpoint

SECOND = "rank-00001.safetensors"

DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "first byte": (lambda path: flip_byte(path / SECOND, 0), rf"{SECOND}: checksum \w{{32}}, written with \w{{32}}"),
    "last byte": (lambda path: flip_byte(path / SECOND, 4_999_999), rf"{SECOND}: checksum"),
    "truncated": (lambda path: os.truncate(path / SECOND, 17), rf"{SECOND}: 17 bytes, written with 5000000"),
    "file deleted": (lambda path: (path / SECOND).unlink(), rf"{SECOND}: No such file or directory"),
    "file is a directory": (
        lambda path: ((path / SECOND).unlink(), (path / SECOND).mkdir()),  # type: ignore[dict-item]
        rf"{SECOND}: \d+ bytes, written with",
    ),
    "meta deleted": (lambda path: (path / "meta.json").unlink(), r"meta\.json is missing"),
    "meta cut": (lambda path: os.truncate(path / "meta.json", 100), r"meta\.json: checkpoint: it is not valid JSON"),
    "meta empty": (lambda path: (path / "meta.json").write_text("{}") and None, r"meta\.json: KeyError\('format_ver"),
    "meta no object": (lambda path: (path / "meta.json").write_text("[]") and None, r"meta\.json: TypeError"),
    "a digit of meta": (
        lambda path: (
            (path / "meta.json").write_text(
                (path / "meta.json").read_text().replace('"tokens_seen": 0', '"tokens_seen": 4')
            )
            and None
        ),
        r"meta\.json: it was changed after it was written",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_the_newest_intact(kind: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10, num_bytes=8)
    path = write_checkpoint(tmp_path, 20)
    assert damage_of(path) == []
    assert newest_intact(tmp_path) == (20, {})
    damage, message = DAMAGE[kind]
    damage(path)
    (found,) = damage_of(path)
    assert re.match(message, found), found
    assert newest_intact(tmp_path) == (10, {20: [found]})


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 10, num_files=3, num_bytes=9)
    flip_byte(path / "rank-00000.safetensors", 3)
    (path / "rank-00002.safetensors").unlink()
    assert [text.partition(":")[0] for text in damage_of(path)] == ["rank-00000.safetensors", "rank-00002.safetensors"]


def test_none_is_intact(tmp_path: Path) -> None:
    assert newest_intact(tmp_path) == (None, {})
    for step in (10, 20):
        write_checkpoint(tmp_path, step, num_bytes=9)
        flip_byte(checkpoint_directory(tmp_path, step) / SECOND, 0)
    step, damage = newest_intact(tmp_path)
    assert step is None
    assert list(damage) == [20, 10]


@pytest.mark.parametrize(("number", "advice"), [(1, "go on with the version of pretrain that wrote it"), (3, "update")])
def test_another_format_is_no_damage(number: int, advice: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10, num_bytes=9)
    path = write_checkpoint(tmp_path, 20, num_bytes=9)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format_version": number}))
    with pytest.raises(UserError, match=f"has format {number}; this version reads 2: {advice}"):
        newest_intact(tmp_path)
