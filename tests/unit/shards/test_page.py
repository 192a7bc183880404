"""The code on the page runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.corpora import write_corpus

PAGE = Path(__file__).parents[3] / "docs/shards.md"


def test_reading_with_webdataset_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[5, 400, 3]])
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(corpus.directory)
    exec(code, {})
    printed = capsys.readouterr().out
    for document in corpus.documents["train"][0]:
        assert f"{document.name} [" in printed
        assert str(document.tokens[0]) in printed
