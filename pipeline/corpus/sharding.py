"""Encoded documents -> shards: the deal of all documents, and the step that writes one shard.

Letters: D documents of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
class DealtShard:
    """One shard of the deal."""

    folder: str
    """Corpus directory below the output; "": the output itself."""

    split: str
    """``train`` or ``validation``."""

    number: int
    """In its split."""


@dataclass(frozen=True, eq=False)
class Deal:
    """What the deal came to."""

    shards: list[DealtShard]
    """All shards, in the order of the writing tasks."""

    by_source: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Split -> documents and tokens of every source."""

    num_repeated_ids: dict[str, int]
    """Folder -> documents whose id another document before has."""

    @property
    def num_documents(self) -> int:
        """Documents of all corpora."""
        return sum(int(documents.sum()) for documents, _ in self.by_source.values())

    @property
    def num_tokens(self) -> int:
        """Tokens of all corpora."""
        return sum(int(tokens.sum()) for _, tokens in self.by_source.values())


def deal_documents(
    texts: Path,
    encoded: Path,
    num_tasks: int,
    shards: ShardConfig,
    folders: Mapping[str, Sequence[int]],
    output: Path,
) -> Deal:
    """Assign every encoded document a split, a shard and a place in it; one ``.npy`` of :data:`DEALT` a shard.

    Needs about 45 bytes of memory a document.

    Args:
        folders: numbers of the sources that go into each corpus directory; all sources together.
    """
    places, split_keys, order_keys, tokens, sources = [], [], [], [], []
    for task in range(num_tasks):
        table = read_encoded(encoded, task)
        documents = read_documents(texts, task)[table["document"]]
        place = np.empty(len(table), DEALT)
        place["task"], place["index"] = task, np.arange(len(table))
        places.append(place)
        split_keys.append(documents["split_key"])
        order_keys.append(documents["order_key"])
        tokens.append(table["tokens"].astype(np.int64))
        sources.append(documents["source"])
    place, order_key, num_tokens = np.concatenate(places), np.concatenate(order_keys), np.concatenate(tokens)
    split_key, source = np.concatenate(split_keys), np.concatenate(sources)
    order = np.argsort(order_key, kind="stable")
    num_sources = 1 + max(max(numbers) for numbers in folders.values())
    by_source = {split: (np.zeros(num_sources, np.int64), np.zeros(num_sources, np.int64)) for split in SPLITS}
    num_repeated: dict[str, int] = {}
    output.mkdir(parents=True, exist_ok=True)
    dealt: list[DealtShard] = []
    for folder, own in folders.items():
        inside = order if len(folders) == 1 else order[np.isin(source[order], own)]
        num_repeated[folder] = len(inside) - len(np.unique(order_key[inside]))
        validation = with_both_splits(split_key[inside], shards.validation_share)
        for split, documents in zip(SPLITS, (inside[~validation], inside[validation]), strict=True):
            _count_by_source(by_source[split], source[documents], num_tokens[documents])
            numbers = shard_numbers(num_tokens[documents], shards.tokens, shards.documents)
            ends = (np.flatnonzero(np.diff(numbers, append=-1)) + 1).tolist()
            for number, (begin, end) in enumerate(pairwise([0, *ends])):
                save_array(output / f"{len(dealt):05d}.npy", place[documents[begin:end]])
                dealt.append(DealtShard(folder, split, number))
    return Deal(dealt, by_source, num_repeated)


def _count_by_source(
    counts: tuple[NDArray[np.int64], NDArray[np.int64]], source: NDArray[np.uint32], tokens: NDArray[np.int64]
) -> None:
    documents, num_tokens = counts
    documents += np.bincount(source, minlength=len(documents))
    np.add.at(num_tokens, source, tokens)  # not `bincount(weights=...)`, which counts in floats


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
        dealt: Sequence[DealtShard],
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
        shard = self.dealt[rank]
        split = shard.split
        counter = TaskCounter(self.counters, rank)
        dealt = np.load(self.deal / f"{rank:05d}.npy")
        texts, ids = self._gather(dealt)
        counts = np.zeros(self.vocab_size, np.int64)
        with ShardWriter(
            shard_path(self.output / shard.folder, split, shard.number), np.dtype(self.dtype), self.shards.block_tokens
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


def written_facts(facts: Path, dealt: Sequence[DealtShard], folder: str) -> dict[str, list[ShardFacts]]:
    """What the shard tasks of one corpus directory wrote, by split."""
    by_split: dict[str, list[ShardFacts]] = {split: [] for split in SPLITS}
    for rank, shard in enumerate(dealt):
        if shard.folder == folder:
            by_split[shard.split].append(ShardFacts(**read_json(facts / f"{rank:05d}.json", "shard facts")))
    return by_split


def validation_counts(facts: Path, dealt: Sequence[DealtShard], folder: str, vocab_size: int) -> NDArray[np.int64]:
    """Tokens of the validation split of one corpus directory by id, (vocab_size,)."""
    counts = np.zeros(vocab_size, np.int64)
    for rank, shard in enumerate(dealt):
        if shard.folder == folder and shard.split == "validation":
            counts += np.load(facts / f"{rank:05d}.counts.npy")
    return counts
