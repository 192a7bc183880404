"""The writer of a shard holds the documents of its shard and nothing of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.corpus import SourceConfig
from pipeline.corpus.build import build_corpus
from pipeline.corpus.sharding import ShardStep
from tests.unit.corpus.writing import config_of, make_texts, write_jsonl


def test_gathered_documents_keep_no_file_of_a_task_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather = ShardStep._gather
    seen: list[Any] = []

    def observed(step: ShardStep, dealt: Any) -> Any:
        found = gather(step, dealt)
        seen.extend([*found[0], *found[1]])
        return found

    monkeypatch.setattr(ShardStep, "_gather", observed)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    build_corpus(config_of(SourceConfig("a", "jsonl", str(path))), tmp_path / "out", processes=1)
    assert len(seen) == 2 * 20
    assert all(array.base is None for array in seen)
