"""The typed config of a synthetic corpus: which language without meaning, how large, how it is sharded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from pipeline.config.corpus import ShardConfig

SyntheticKind = Literal["random", "zipf", "paired", "shuffle", "nested"]
SpecialTokenStyle = Literal["bert", "roberta", "gpt2"]

EVEN_KINDS: Final = ("paired", "nested")
"""Kinds whose tokens come in pairs, so that a document has an even number of them."""


@dataclass(frozen=True)
class SyntheticConfig:
    """A corpus without text, to make with `pretrain corpus synthesize`. A file is known by its `kind`."""

    kind: SyntheticKind = "random"
    """`random`: every word equally likely; `zipf`: word number r (from 1) with probability proportional to r to the
    power of -`exponent`; `paired`: every word of a document occurs in it exactly twice, anywhere; `shuffle`: runs of
    `run_length` consecutive words, each shuffled; `nested`: matched and nested brackets, every one closed."""

    documents: int = 10_000
    """Documents, those of the validation split included. More of them leave the first ones as they are."""

    vocab_size: int = 1000
    """Words that documents are made of; the special tokens of `style` come on top. `nested`: half of them open."""

    length: int = 128
    """Tokens of a document; the least of them if `max_length` is set."""

    max_length: int | None = None
    """Most tokens of a document: lengths are uniform from `length` to this (`paired` and `nested`: the even ones)."""

    sentence_length: int = 16
    """Tokens of a sentence; the last one of a document may be shorter. Only read with `shards.sentences`."""

    style: SpecialTokenStyle = "bert"
    """Special tokens, by family: `[CLS] [SEP] ...`, `<s> </s> ...`, or `<|endoftext|>`."""

    exponent: float = 1.0
    """zipf: how steeply frequencies fall; 0 makes all words equally likely."""

    run_length: int = 16
    """shuffle: consecutive words of a run, from a random one on (the last word is followed by the first). The last run
    of a document may be shorter."""

    open_probability: float = 0.5
    """nested: probability of an opening bracket where one may also be closed."""

    max_depth: int = 16
    """nested: most brackets open at a time."""

    shards: ShardConfig = field(default_factory=ShardConfig)
    """Shard sizes and the validation split."""

    seed: int = 0
    """Everything random follows from it."""
