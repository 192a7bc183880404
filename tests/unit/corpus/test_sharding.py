"""The writer of a shard holds the documents of its shard and nothing of the others."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.config.corpus import ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus.build import build_corpus
from pipeline.corpus.sharding import ShardStep
from pipeline.corpus.tokenizer import encoder
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.writing import config_of, make_texts, write_jsonl


def test_gathered_documents_keep_no_file_of_a_task_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather = ShardStep._gather
    seen: list[Any] = []

    def observed(step: ShardStep, dealt: Any) -> Any:
        found = gather(step, dealt)
        seen.extend(array for text in found[0] for array in (text.tokens, text.sentence_starts, text.word_starts))
        return found

    monkeypatch.setattr(ShardStep, "_gather", observed)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    build_corpus(config_of(SourceConfig("a", "jsonl", str(path))), tmp_path / "out", processes=1)
    assert len(seen) == 3 * 20
    assert not any(is_mapped(array) for array in seen)


def is_mapped(array: Any) -> bool:
    return isinstance(array, np.memmap) or (array.base is not None and is_mapped(array.base))


@pytest.mark.parametrize(
    "tokenizer", [TokenizerConfig(vocab_size=200), TokenizerConfig("byte_bpe", vocab_size=400, style="gpt2")]
)
def test_words_of_documents_come_with_them(tmp_path: Path, tokenizer: TokenizerConfig) -> None:
    texts = make_texts(30)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "id": str(number)} for number, text in enumerate(texts)])
    config = config_of(SourceConfig("a", "jsonl", str(path), id_field="id"), tokenizer=tokenizer)
    build_corpus(config, tmp_path / "out", processes=1)
    files = LocalFiles(tmp_path / "out")
    manifest = read_manifest(files)
    assert manifest.has_words
    backend = encoder(tmp_path / "out/tokenizer")
    num_documents = 0
    for split, table in manifest.splits.items():
        for number in range(len(table)):
            shard = Shard.open(files, split, number, manifest)
            for document, name in enumerate(shard.document_ids(range(shard.documents))):
                encoding = backend.encode(texts[int(name.removeprefix("a/"))], add_special_tokens=False)
                expected = [new != old for new, old in pairwise([None, *encoding.word_ids])]
                found = shard.word_starts(int(shard.index.starts[document]), int(shard.lengths[document]))
                assert found.tolist() == expected
                num_documents += 1
    assert num_documents == 30


def test_words_may_be_left_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    config = config_of(SourceConfig("a", "jsonl", str(path)), shards=ShardConfig(words=False, validation_share=0.1))
    build_corpus(config, tmp_path / "out", processes=1)
    manifest = read_manifest(LocalFiles(tmp_path / "out"))
    assert (manifest.has_sentences, manifest.has_words) == (True, False)
    verify_corpus(tmp_path / "out")
    with pytest.raises(UserError, match=r"has no word starts: .*shards\.words: true"):
        Shard.open(LocalFiles(tmp_path / "out"), "train", 0, manifest).word_starts(320, 1)
