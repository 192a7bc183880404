"""Small inputs for the tests of the corpus: texts with words in common, sources on disk, configs."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.base.errors import UserError
from pipeline.config.corpus import CleaningConfig, CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus.build import build_corpus
from pipeline.corpus.summary import BuildSummary

WORDS = (
    "the whale sea ship captain harpoon wave storm sailor deck mast wind lady ball dance letter sister uncle estate"
    " walk carriage Mr. Mrs. king queen forest wolf grandmother naïve café über 12 3.5 don't it's"
)


def make_texts(count: int, seed: int = 0, num_sentences: int = 5) -> list[str]:
    """Different texts of a few sentences and paragraphs."""
    generator = np.random.default_rng(seed)
    words = WORDS.split()
    texts = []
    for number in range(count):
        sentences = [
            " ".join(generator.choice(words, int(generator.integers(3, 12))).tolist()).capitalize() + "."
            for _ in range(num_sentences)
        ]
        middle = len(sentences) // 2
        texts.append(f"Text {number}. {' '.join(sentences[:middle])}\n\n{' '.join(sentences[middle:])}")
    return texts


def write_jsonl(path: Path, records: Sequence[dict[str, Any] | bytes]) -> Path:
    """One line a record; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def config_of(*sources: SourceConfig, vocab_size: int = 200, **changes: Any) -> CorpusConfig:
    """A config for tiny corpora; ``changes`` replace whole sections."""
    sections: dict[str, Any] = {
        "tokenizer": TokenizerConfig(vocab_size=vocab_size),
        "shards": ShardConfig(tokens=2000, block_tokens=500, validation_share=0.1),
        "cleaning": CleaningConfig(),
    }
    return CorpusConfig(sources=list(sources), **{**sections, **changes})


def files_of(directory: Path) -> dict[str, bytes]:
    """All files below a directory, by relative name."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def build(config: CorpusConfig, output: Path, processes: int = 1) -> tuple[BuildSummary, str]:
    """Summary and what was printed."""
    printed = io.StringIO()
    summary = build_corpus(config, output, processes=processes, console=Console(file=printed))
    return summary, printed.getvalue()


def refused(config: CorpusConfig, output: Path, processes: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        build(config, output, processes)
    return str(caught.value)
