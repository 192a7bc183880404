"""What the types of a synthetic corpus cannot say: ranges and contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.config.checks import shard_problems
from pipeline.config.ranges import at_least, at_most, not_negative, share
from pipeline.config.synthetic import EVEN_KINDS, SyntheticConfig

MOST_WORDS: Final = 1 << 24
MOST_TOKENS: Final = 1 << 24
MOST_DOCUMENTS: Final = 1 << 31
"""Far above what is useful; what the keyed permutations and the deal of the documents can hold."""


def synthetic_problems(config: SyntheticConfig) -> list[str]:
    """All problems of the config of a synthetic corpus."""
    return [*_range_problems(config), *_length_problems(config), *_vocabulary_problems(config)]


def _range_problems(config: SyntheticConfig) -> Iterator[str]:
    yield from at_least(
        1,
        documents=config.documents,
        length=config.length,
        sentence_length=config.sentence_length,
        run_length=config.run_length,
        max_depth=config.max_depth,
    )
    yield from at_most(MOST_DOCUMENTS, documents=config.documents)
    yield from at_most(MOST_TOKENS, length=config.length, sentence_length=config.sentence_length)
    yield from at_least(2, vocab_size=config.vocab_size)
    yield from at_most(MOST_WORDS, vocab_size=config.vocab_size)
    yield from not_negative(exponent=config.exponent)
    yield from share(open_probability=config.open_probability)
    if not -(2**63) <= config.seed < 2**63:
        yield f"seed: {config.seed} does not fit 64 bits."
    yield from shard_problems(config.shards)
    if config.shards.by_language:
        yield "shards.by_language: a synthetic corpus has one language; leave it out."


def _length_problems(config: SyntheticConfig) -> Iterator[str]:
    bounds = {"length": config.length}
    if config.max_length is not None:
        bounds["max_length"] = config.max_length
        yield from at_most(MOST_TOKENS, max_length=config.max_length)
        if config.max_length < config.length:
            yield (
                f"max_length: {config.max_length} is below length ({config.length}); give the most tokens of a "
                "document, or leave it out for documents of one length."
            )
    if config.kind in EVEN_KINDS:
        for name, tokens in bounds.items():
            if tokens % 2:
                yield (
                    f"{name}: {tokens} is odd, but the tokens of kind `{config.kind}` come in pairs; use {tokens + 1}."
                )


def _vocabulary_problems(config: SyntheticConfig) -> Iterator[str]:
    words, longest = config.vocab_size, config.max_length or config.length
    if config.kind == "nested" and words % 2:
        yield f"vocab_size: {words} is odd, but kind `nested` has as many closing as opening brackets; use {words + 1}."
    if config.kind == "paired" and words < longest // 2:
        yield (
            f"vocab_size: {words} is too small: a document of {longest} tokens needs {longest // 2} different words "
            "with kind `paired`. Raise vocab_size, or make the documents shorter."
        )
    if config.kind == "shuffle" and words < config.run_length:
        yield (
            f"vocab_size: {words} is too small: a run needs {config.run_length} different words (run_length). Raise "
            "vocab_size, or lower run_length."
        )
