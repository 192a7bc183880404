"""What `pretrain corpus stats` says of a manifest whose provenance was edited: no checksum covers that part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.corpus.stats import corpus_stats, stats_lines
from pipeline.shards.manifest import write_manifest
from tests.corpora import write_corpus


@pytest.mark.parametrize(
    "edited", [{"sources": [{"name": "x"}]}, {"extra": {"unknown_tokens": "many"}}, {"sources": [{"drops": 3}]}]
)
def test_edited_provenance_is_one_message(tmp_path: Path, edited: dict[str, Any]) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[3, 4]])
    manifest = replace(corpus.manifest, sources=(), extra={})
    write_manifest(corpus.directory, manifest)
    assert stats_lines(corpus_stats(corpus.directory))
    write_manifest(corpus.directory, replace(manifest, **edited))
    with pytest.raises(UserError, match=r"`sources` or `extra` of the manifest are not what .*Restore the manifest"):
        stats_lines(corpus_stats(corpus.directory))
