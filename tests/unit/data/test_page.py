"""The code and the settings of docs/data.md work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.loading import load_run_config
from pipeline.config.stages import stages_of
from tests.corpora import random_lengths, write_corpus

PAGE = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")


def test_the_code_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    write_corpus(tmp_path / "corpora/demo", random_lengths(0, 3, 40))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/data.md", "exec"), {})
    assert capsys.readouterr().out.startswith("(32, 128) ['train-")


def test_the_stages_of_the_page(tmp_path: Path) -> None:
    (settings,) = re.findall(r"^    train:\n(?:      .*\n)+", PAGE, re.MULTILINE)
    path = tmp_path / "run.yaml"
    path.write_text(
        "run_directory: runs/x\ndata: {corpus: corpora/mine}\n" + re.sub(r"^    ", "", settings, flags=re.M)
    )
    stages = stages_of(load_run_config(path)).all
    assert [stage.global_batch_size for stage in stages] == [256, 384, 512, 640, 768, 896, 1024, 256]
    assert {stage.sequence_length for stage in stages[:-1]} == {128}
