"""The measured corpus: real where the text is there, else synthetic; and our side's equality checks on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import batches, corpus, engine


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "WORK", tmp_path_factory.mktemp("work"))
        patch.setattr(corpus, "SHARED", Path("nowhere"))
        patch.setattr(corpus, "_first_tokens", lambda documents, _: _take(documents, 100_000))
        yield corpus.prepare("prose", quick=True)


def _take(documents, num_tokens: int):
    for document in documents:
        if num_tokens <= 0:
            return
        num_tokens -= len(document.tokens)
        yield document


def test_without_the_text_lengths_are_drawn_and_this_is_said(synthetic) -> None:
    assert "synthetic tokens, log-normal lengths" in synthetic.description
    assert 100_000 <= synthetic.num_tokens < 120_000
    assert engine.is_written(synthetic.directory, corpus._VERSION)
    assert not engine.is_written(synthetic.directory, "0")


def test_packed_rows_hold_every_token_of_whole_steps(synthetic) -> None:
    packed = corpus.pack_rows(synthetic)
    rows = packed.load()
    assert len(rows) == packed.num_rows
    assert packed.num_rows % engine.BATCH_ROWS == 0
    assert packed.num_tokens == int((rows != 0).sum())
    assert packed.digest == corpus.rows_digest(rows)
    assert corpus.num_batches(packed) == packed.num_rows // 64
    written = packed.path.stat().st_mtime_ns
    assert corpus.pack_rows(synthetic) == packed
    assert packed.path.stat().st_mtime_ns == written


def test_our_batches_pass_the_check_and_other_rows_do_not(synthetic) -> None:
    packed = corpus.pack_rows(synthetic)
    batches.check_ours(synthetic, packed)
    other = corpus.PackedRows(packed.path, packed.num_rows, packed.num_tokens, digest="0" * 64)
    with pytest.raises(AssertionError):
        batches.check_ours(synthetic, other)


def test_documents_are_dealt_in_order_to_shards_of_the_default_size(monkeypatch) -> None:
    monkeypatch.setattr(corpus, "_TOKENS_A_SHARD", 100)
    monkeypatch.setattr(corpus, "_DOCUMENTS_A_SHARD", 4)
    lengths = [40, 40, 40, 120, 1, 1, 1, 1, 1]
    documents = [engine.Document(str(number), np.zeros(length, np.uint16)) for number, length in enumerate(lengths)]
    names = [[document.name for document in shard] for shard in corpus._deal(documents)]
    assert names == [["0", "1", "2"], ["3"], ["4", "5", "6", "7"], ["8"]]
