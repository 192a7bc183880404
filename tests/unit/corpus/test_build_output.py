"""What a build refuses to write to, what a full disk does to it, and the bar it draws."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.corpus import SourceConfig
from pipeline.corpus import build as build_module
from pipeline.corpus.build import build_corpus
from tests.unit.corpus.writing import build, config_of, make_texts, refused, write_jsonl


def test_an_output_with_other_files_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in/a.jsonl", [{"text": text} for text in make_texts(3)])
    config = config_of(SourceConfig("a", "jsonl", str(path)))
    assert "is not empty and holds no corpus (found in)" in refused(config, tmp_path)
    assert "is a file; a corpus is a directory" in refused(config, path)


def test_folders_named_as_a_corpus_has_them_are_not_ours_to_delete(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train/a.jsonl", [{"text": text} for text in make_texts(3)])
    config = config_of(SourceConfig("a", "jsonl", str(tmp_path)))
    assert "is not empty and holds no corpus (found train)" in refused(config, tmp_path)
    assert path.is_file()


def test_processes_are_at_least_one(tmp_path: Path) -> None:
    assert "--processes 0: at least 1 is needed" in refused(config_of(), tmp_path / "out", processes=0)


@pytest.mark.parametrize(
    ("number", "text"),
    [(28, "The disk is full while writing"), (122, "The disk is full while writing"), (13, "No permission: /there")],
)
def test_what_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(3)])
    config = config_of(SourceConfig("a", "jsonl", str(path)))

    def fail(*_: object) -> None:
        raise OSError(number, "refused", "/there")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "deal_documents", fail)
        assert text in refused(config, tmp_path / "out")
    assert build(config, tmp_path / "out")[0].documents == 3


def test_the_bar_on_a_terminal(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(3)])
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=100)
    build_corpus(config_of(SourceConfig("a", "jsonl", str(path))), tmp_path / "out", processes=1, console=console)
    assert "\x1b[" in printed.getvalue()
    assert "Reading and cleaning" in printed.getvalue()
