"""A corpus made of nothing: to measure a config where its text has not been built yet.

Letters: T tokens of a document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config.run import ModelConfig, RunConfig
from pipeline.config.stages import stages_of
from pipeline.shards.layout import shard_path, token_dtype
from pipeline.shards.manifest import TOKENIZER_NAME, Manifest, ShardTable, write_manifest
from pipeline.shards.writer import ShardWriter

PUBLISHED_VOCABULARIES: Final = {
    "bert": 30_522,
    "roberta": 50_265,
    "distilbert": 30_522,
    "albert": 30_000,
    "electra": 30_522,
    "modernbert": 50_368,
    "bart": 50_265,
    "gpt2": 50_257,
    "openai-gpt": 40_478,
}
"""Ids of the published tokenizers: the default where `model.vocab_size` is not set."""

MEDIAN_TOKENS: Final = 250
SIGMA: Final = 1.1
"""Document lengths are log-normal, as those of encyclopedia articles: many are short, a few very long."""

_SPECIAL_IDS: Final = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 5, "eos": 6}
_FEWEST_IDS: Final = 16
_FEWEST_TOKENS: Final = 1 << 20
_MOST_TOKENS: Final = 1 << 25
_MEAN_SENTENCE_TOKENS: Final = 25
_WORD_SHARE: Final = 0.75  # of the tokens that begin a word
_NUM_SHARDS: Final = 4


def write_synthetic_corpus(directory: Path, config: RunConfig) -> None:
    """Documents of random tokens in ``directory``, enough for a few steps of ``config``; the same on every rank.

    Whoever reads more than there is reads it again. The ids are as unequally frequent as words are.
    """
    vocab_size = max(config.model.vocab_size or _published(config.model), _FEWEST_IDS)
    step_tokens = max(stage.global_batch_size * stage.sequence_length for stage in stages_of(config).all)
    num_tokens = min(max(4 * step_tokens, _FEWEST_TOKENS), _MOST_TOKENS)
    facts = []
    for number in range(_NUM_SHARDS):
        generator = np.random.default_rng(number)
        with ShardWriter(shard_path(directory, "train", number), token_dtype(vocab_size), 1 << 19) as writer:
            for document in _documents(generator, vocab_size, num_tokens // _NUM_SHARDS):
                writer.add(f"synthetic/{number}/{writer.num_documents}", *document)
            facts.append(writer.close())
    tokenizer = directory / TOKENIZER_NAME
    tokenizer.parent.mkdir(parents=True)
    tokenizer.write_bytes(b"{}")
    manifest = Manifest(
        tokenizer_fingerprint=hashlib.sha256(b"{}").hexdigest(),
        vocab_size=vocab_size,
        special_ids=_SPECIAL_IDS,
        all_special_ids=sorted(_SPECIAL_IDS.values()),
        splits={"train": ShardTable.from_facts(facts)},
        has_sentences=True,
        has_words=True,
    )
    write_manifest(directory, manifest)


def _published(model: ModelConfig) -> int:
    return PUBLISHED_VOCABULARIES.get(model.family) or int((model.config or {}).get("vocab_size", _FEWEST_IDS))


def _documents(
    generator: np.random.Generator, vocab_size: int, num_tokens: int
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.bool_]]]:
    """Tokens, sentence starts and word starts of documents until there are ``num_tokens``."""
    first = len(_SPECIAL_IDS)
    while num_tokens > 0:
        length = max(1, int(generator.lognormal(np.log(MEDIAN_TOKENS), SIGMA)))
        # Log-uniform ranks: the frequency of an id falls as 1 / rank (Zipf's law).
        ranks = np.exp(generator.random(length) * np.log(vocab_size - first))  # T
        sentences = np.unique(np.append(0, generator.integers(0, length, length // _MEAN_SENTENCE_TOKENS)))
        words = generator.random(length) < _WORD_SHARE  # T
        words[0] = True
        yield first + ranks.astype(np.int64) - 1, sentences, words
        num_tokens -= length
