"""Encoded documents -> shards: the deal of all documents, and the step that writes one shard.

Letters: D documents of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from pipeline.base.files import read_json, write_json_atomically
from pipeline.config.corpus import ShardConfig
from pipeline.corpus.counters import TaskCounter
from pipeline.corpus.dealing import shard_numbers, with_both_splits
from pipeline.corpus.encoding import EncodedText, TokenStore, read_encoded
from pipeline.corpus.text_store import TextStore, read_documents, save_array
from pipeline.shards.layout import shard_path
from pipeline.shards.writer import ShardFacts, ShardWriter

DEALT: Final = np.dtype([("task", "<u4"), ("index", "<u4")])
"""Where a document of a shard is found: task, and index in the task's table of encoded documents."""

SPLITS: Final = ("train", "validation")


@dataclass(frozen=True)
class Deal:
    """What the deal came to."""

    shards: list[tuple[str, int]]
    """Split and number of every shard, in the order of the writing tasks."""

    num_tokens: int
    """Tokens of the corpus."""

    num_documents: int
    """Documents of the corpus."""

    num_repeated_ids: int
    """Documents whose id another document before has."""


def deal_documents(texts: Path, encoded: Path, num_tasks: int, shards: ShardConfig, output: Path) -> Deal:
    """Assign every encoded document a split, a shard and a place in it; one ``.npy`` of :data:`DEALT` a shard.

    Needs about 40 bytes of memory a document.
    """
    places, split_keys, order_keys, tokens = [], [], [], []
    for task in range(num_tasks):
        table = read_encoded(encoded, task)
        documents = read_documents(texts, task)[table["document"]]
        place = np.empty(len(table), DEALT)
        place["task"], place["index"] = task, np.arange(len(table))
        places.append(place)
        split_keys.append(documents["split_key"])
        order_keys.append(documents["order_key"])
        tokens.append(table["tokens"].astype(np.int64))
    place, order_key, num_tokens = np.concatenate(places), np.concatenate(order_keys), np.concatenate(tokens)
    validation = with_both_splits(np.concatenate(split_keys), shards.validation_share)
    order = np.argsort(order_key, kind="stable")
    num_repeated = len(order) - len(np.unique(order_key))
    output.mkdir(parents=True, exist_ok=True)
    dealt: list[tuple[str, int]] = []
    for split, chosen in zip(SPLITS, (~validation, validation), strict=True):
        documents = order[chosen[order]]
        numbers = shard_numbers(num_tokens[documents], shards.tokens, shards.documents)
        ends = (np.flatnonzero(np.diff(numbers, append=-1)) + 1).tolist()
        for number, (begin, end) in enumerate(pairwise([0, *ends])):
            save_array(output / f"{len(dealt):05d}.npy", place[documents[begin:end]])
            dealt.append((split, number))
    return Deal(dealt, int(num_tokens.sum()), len(order), num_repeated)


class ShardStep(PipelineStep):
    """Task ``n`` writes the ``n``-th shard of the deal; a shard appears whole or not at all.

    Files in ``facts``: ``NNNNN.json`` (what the manifest keeps) and, for validation, ``NNNNN.counts.npy`` (tokens by
    id).
    """

    type = "writer"
    name = "shards"

    def __init__(
        self,
        texts: Path,
        encoded: Path,
        deal: Path,
        dealt: Sequence[tuple[str, int]],
        vocab_size: int,
        dtype: str,
        shards: ShardConfig,
        output: Path,
        facts: Path,
        counters: Path,
    ) -> None:
        super().__init__()
        self.texts = texts
        self.encoded = encoded
        self.deal = deal
        self.dealt = list(dealt)
        self.vocab_size = vocab_size
        self.dtype = dtype
        self.shards = shards
        self.output = output
        self.facts = facts
        self.counters = counters

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Writes shard ``rank``; yields none."""
        split, number = self.dealt[rank]
        counter = TaskCounter(self.counters, rank)
        dealt = np.load(self.deal / f"{rank:05d}.npy")
        texts, ids = self._gather(dealt)
        counts = np.zeros(self.vocab_size, np.int64)
        with ShardWriter(
            shard_path(self.output, split, number), np.dtype(self.dtype), self.shards.block_tokens
        ) as writer:
            for name, text in zip(ids, texts, strict=True):
                sentences = text.sentence_starts if self.shards.sentences else None
                writer.add(name, text.tokens, sentences, text.word_starts if self.shards.words else None)
                counter.finish(len(text.tokens))
                if split == "validation":
                    counts += np.bincount(text.tokens, minlength=self.vocab_size)
            facts = writer.close()
        self.facts.mkdir(parents=True, exist_ok=True)
        if split == "validation":
            save_array(self.facts / f"{rank:05d}.counts.npy", counts)
        write_json_atomically(self.facts / f"{rank:05d}.json", vars(facts))
        self.stat_update("documents", value=len(dealt))
        yield from ()

    def _gather(self, dealt: NDArray[np.void]) -> tuple[list[EncodedText], list[str]]:
        """Tokens and ids of a shard's documents, read task by task so that few files are open."""
        found: dict[int, tuple[EncodedText, str]] = {}
        for task in np.unique(dealt["task"]).tolist():
            store = TokenStore(self.encoded, task, np.dtype(self.dtype))
            texts = TextStore.open(self.texts, task)
            for place in np.flatnonzero(dealt["task"] == task).tolist():
                index = int(dealt["index"][place])
                found[place] = store.text(index), texts.id_of(int(store.encoded["document"][index]))
        ordered = [found[place] for place in range(len(dealt))]
        return [text for text, _ in ordered], [name for _, name in ordered]


def written_facts(facts: Path, dealt: Sequence[tuple[str, int]]) -> dict[str, list[ShardFacts]]:
    """What all shard tasks wrote, by split."""
    by_split: dict[str, list[ShardFacts]] = {split: [] for split in SPLITS}
    for rank, (split, _) in enumerate(dealt):
        by_split[split].append(ShardFacts(**read_json(facts / f"{rank:05d}.json", "shard facts")))
    return by_split


def validation_counts(facts: Path, vocab_size: int) -> NDArray[np.int64]:
    """Tokens of the validation split by id, (vocab_size,)."""
    counts = np.zeros(vocab_size, np.int64)
    for path in sorted(facts.glob("*.counts.npy")):
        counts += np.load(path)
    return counts
