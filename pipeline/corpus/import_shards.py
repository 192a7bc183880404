"""Where the documents of an import go: splits and shards, and the writers of their shards.

Letters: D documents of a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config.corpus import ShardConfig
from pipeline.corpus.dealing import shard_numbers, with_both_splits
from pipeline.corpus.text_store import id_keys
from pipeline.corpus.token_source import TokenSource
from pipeline.shards.layout import shard_path
from pipeline.shards.writer import ShardFacts, ShardWriter

IMPORT_SEED: Final = 0
"""The default of `corpus build`, so that a document of one name goes to one split."""


@dataclass(frozen=True, eq=False)
class Deal:
    """Where the documents of a source go, in its order."""

    validation: NDArray[np.bool_]
    """Whether a document goes to the validation split, (D,)."""

    shard: NDArray[np.int64]
    """Shard in its split, not decreasing among the documents of a split, (D,)."""

    num_tokens: int
    """Tokens of the source, special ones included."""

    num_repeated_ids: int
    """Documents whose name another one before has."""


def deal_source(source: TokenSource, split: str, keeps_split: bool, shards: ShardConfig) -> Deal:
    """Decide splits and shards from names and lengths alone.

    Args:
        split: of the source.
        keeps_split: it becomes ours; else a share of the documents is held out, by a hash of their names.
    """
    keys, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for ids, sizes in source.sizes():
        keys.append(np.array([id_keys(document_id, IMPORT_SEED)[0] for document_id in ids], np.uint64))
        lengths.append(sizes)
    split_keys, tokens = np.concatenate(keys), np.concatenate(lengths)
    validation = np.full(len(tokens), keeps_split and split == "validation")
    if not keeps_split and len(tokens) > 1:
        validation = with_both_splits(split_keys, shards.validation_share)
    shard = np.zeros(len(tokens), np.int64)
    for chosen in (validation, ~validation):
        if chosen.any():
            shard[chosen] = shard_numbers(tokens[chosen], shards.tokens, shards.documents)
    return Deal(validation, shard, int(tokens.sum()), len(split_keys) - len(np.unique(split_keys)))


class SplitWriter:
    """The shards of one of our splits, one after the other."""

    def __init__(self, directory: Path, split: str, dtype: np.dtype, shards: ShardConfig) -> None:
        self.directory = directory
        self.split = split
        self.dtype = dtype
        self.shards = shards
        self.facts: list[ShardFacts] = []
        self._writer: ShardWriter | None = None
        self._shard = -1

    def of_shard(self, shard: int) -> ShardWriter:
        """The writer of a shard of the deal.

        Shards whose documents are all empty are left out of the numbering, and one that a cut document overfills is
        continued by another.
        """
        if self._writer is None or shard != self._shard or self._is_overfull(self._writer):
            self._finish()
            path = shard_path(self.directory, self.split, len(self.facts))
            self._writer, self._shard = ShardWriter(path, self.dtype, self.shards.block_tokens), shard
        return self._writer

    def _is_overfull(self, writer: ShardWriter) -> bool:
        return writer.num_tokens > self.shards.tokens or writer.num_documents > self.shards.documents

    def _finish(self) -> None:
        if self._writer is not None:
            self.facts.append(self._writer.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._writer is not None:
            self._writer.discard()
