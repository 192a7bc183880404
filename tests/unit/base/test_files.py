"""Files that are whole or absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.base import files
from pipeline.base.errors import UserError


def fail(*_: object) -> None:
    raise OSError("no space left")


def test_write_replaces_the_content_and_makes_the_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    files.write_bytes_atomically(path, b"old")
    files.write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_bytes_atomically(path, b"old")
    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        files.write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, real=real: (order.append(name), real(*a))[1])
    files.write_bytes_atomically(tmp_path / "file", b"content")
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"z": [1, 2.5, None], "a": "Größe"}
    files.write_json_atomically(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json", "facts") == value
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "z": [')
    assert text.endswith('"Größe"\n}\n')


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json_atomically(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_reading_json_that_is_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^corpus manifest: .*x\.json does not exist\.$"):
        files.read_json(tmp_path / "x.json", "corpus manifest")
    for content in (b'{"a": ', b"\xff\xfe{}"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UserError, match=r"^corpus manifest: .*x\.json is not valid JSON \(.+\)\.$"):
            files.read_json(tmp_path / "x.json", "corpus manifest")


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "checkpoint"
    with files.directory_made_whole(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "weights").write_bytes(b"w")
        assert not target.exists()
    assert (target / "deep" / "weights").read_bytes() == b"w"
    assert os.listdir(target.parent) == ["checkpoint"]


def test_a_directory_that_fails_never_appears(tmp_path: Path) -> None:
    def fill_half() -> None:
        with files.directory_made_whole(tmp_path / "checkpoint") as temporary:
            (temporary / "weights").write_bytes(b"w")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fill_half()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint.tmp"
    left.mkdir()
    (left / "half").write_bytes(b"h")
    with files.directory_made_whole(tmp_path / "checkpoint") as temporary:
        (temporary / "whole").write_bytes(b"w")
    assert os.listdir(tmp_path / "checkpoint") == ["whole"]
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_an_existing_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "old").write_bytes(b"o")
    with pytest.raises(OSError, match="not empty"), files.directory_made_whole(tmp_path / "checkpoint") as temporary:
        (temporary / "new").write_bytes(b"n")
    assert os.listdir(tmp_path / "checkpoint") == ["old"]
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("num_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_over_chunks(num_bytes: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (num_bytes // 256 + 1)
    (tmp_path / "file").write_bytes(content[:num_bytes])
    assert files.sha256_of_file(tmp_path / "file") == hashlib.sha256(content[:num_bytes]).hexdigest()
