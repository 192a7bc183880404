"""The stages of a build as datatrove pipelines. Worker processes import this module and what it needs, nothing more.

texts        units of input  -> clean documents with hashes
duplicates   buckets of text hashes -> numbers of the copies to drop
tokenizer    one task
encoded      clean documents -> token ids, sentence starts
shards       the deal -> one shard a task
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pipeline.base.errors import UserError
from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.counters import TaskCounter
from pipeline.corpus.dealing import evenly_spread, in_validation
from pipeline.corpus.duplicates import DuplicateFinder, kept_documents, num_buckets
from pipeline.corpus.encoding import TextEncoder
from pipeline.corpus.languages import languages_of, repeated_spread, sample_counts
from pipeline.corpus.reading import TextCleaner, UnitReader
from pipeline.corpus.sharding import Deal, ShardStep
from pipeline.corpus.text_store import TextStore, TextStoreWriter, read_documents
from pipeline.corpus.tokenizer import TokenizerFacts, make_tokenizer
from pipeline.corpus.workspace import Workspace
from pipeline.shards.layout import token_dtype

_WORD_LETTERS = 256
"""Trainers go through a whole word for every pair that they merge in it: sequences are trained on in short words."""


@dataclass(frozen=True)
class Stage:
    """One pipeline and how to show it."""

    name: str
    """Names its files; also what resumes."""

    title: str
    """What a person reads."""

    pipeline: list[PipelineStep]
    """datatrove steps."""

    num_tasks: int
    """From the input."""

    total: int
    """What the counters sum up to at the end."""

    unit: str
    """Of the counters."""

    in_parent: bool = False
    """A single task that uses all cores by itself."""


def texts_stage(config: CorpusConfig, workspace: Workspace, num_tasks: int, total: int) -> Stage:
    """Read and clean."""
    steps = [
        UnitReader(config.sources, workspace.tasks, workspace.counters("texts")),
        TextCleaner(config.cleaning),
        TextStoreWriter(workspace.texts, config.seed),
    ]
    return Stage("texts", "Reading and cleaning", steps, num_tasks, total, "B")


def duplicates_stage(workspace: Workspace, first_documents: list[int]) -> Stage:
    """Find exact duplicates."""
    step = DuplicateFinder(workspace.texts, workspace.duplicates, first_documents, workspace.counters("duplicates"))
    num_documents = first_documents[-1]
    return Stage("duplicates", "Finding duplicates", [step], num_buckets(num_documents), num_documents, " documents")


def tokenizer_stage(config: CorpusConfig, workspace: Workspace, first_documents: list[int]) -> Stage:
    """Train or take the tokenizer."""
    step = TokenizerStep(config, workspace, first_documents)
    title = "Loading tokenizer" if config.tokenizer.path else "Training tokenizer"
    num_texts = 0 if config.tokenizer.path else len(step.training_documents())
    return Stage("tokenizer", title, [step], 1, num_texts, " documents", in_parent=True)


def encoded_stage(config: CorpusConfig, workspace: Workspace, first_documents: list[int], num_bytes: int) -> Stage:
    """Tokenise."""
    step = TextEncoder(
        texts=workspace.texts,
        duplicates=workspace.duplicates if config.cleaning.deduplicate else None,
        first_documents=first_documents,
        tokenizer=workspace.tokenizer,
        tokenizer_facts=workspace.tokenizer_facts,
        sentences=config.shards.sentences,
        words=config.shards.words,
        output=workspace.encoded,
        counters=workspace.counters("encoded"),
    )
    return Stage("encoded", "Tokenising", [step], len(first_documents) - 1, num_bytes, "B")


def shards_stage(config: CorpusConfig, workspace: Workspace, deal: Deal, facts: TokenizerFacts) -> Stage:
    """Write the shards."""
    step = ShardStep(
        texts=workspace.texts,
        encoded=workspace.encoded,
        deal=workspace.deal,
        dealt=deal.shards,
        vocab_size=facts.vocab_size,
        dtype=token_dtype(facts.vocab_size).str,
        shards=config.shards,
        output=workspace.output,
        facts=workspace.shard_facts,
        counters=workspace.counters("shards"),
    )
    return Stage("shards", "Writing shards", [step], len(deal.shards), deal.num_tokens, " tokens")


class TokenizerStep(PipelineStep):
    """Trains the tokenizer on evenly spread training documents (none of the validation split), or takes one."""

    type = "tokenizer"
    name = "vocabulary"

    def __init__(self, config: CorpusConfig, workspace: Workspace, first_documents: list[int]) -> None:
        super().__init__()
        self.config = config
        self.workspace = workspace
        self.first_documents = first_documents

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Saves tokenizer and facts; yields none."""
        tokenizer = self.config.tokenizer
        if tokenizer.kind == "integers" and tokenizer.path is None:
            tokenizer = replace(tokenizer, num_integers=self._count_integers())
        make_tokenizer(tokenizer, self._texts, self.workspace.tokenizer, self.workspace.tokenizer_facts)
        yield from ()

    def _count_integers(self) -> int:
        """The config's number, or the largest integer of all documents + 1; held-out documents need ids too.

        Raises:
            UserError: an integer is not below the config's number.
        """
        limit = self.config.tokenizer.num_integers
        largest = -1
        for task in range(len(self.first_documents) - 1):
            store = TextStore.open(self.workspace.texts, task)
            for document in range(len(store.documents)):
                found = max(map(int, store.text_of(document).split()))
                if limit is not None and found >= limit:
                    raise UserError(
                        f"Document {store.id_of(document)!r} holds the integer {found}; tokenizer.num_integers: "
                        f"{limit} allows 0 to {limit - 1}. Raise it, leave it out, or repair the document."
                    )
                largest = max(largest, found)
        return limit or largest + 1

    def training_documents(self) -> np.ndarray:
        """Numbers of the documents to train on, in order, about ``tokenizer.training_documents`` at most.

        With languages a document may be there several times (:func:`pipeline.corpus.languages.sample_counts`).
        """
        duplicates = self.workspace.duplicates if self.config.cleaning.deduplicate else None
        kept, training = [], []
        for task, (begin, end) in enumerate(zip(self.first_documents, self.first_documents[1:], strict=False)):
            numbers = kept_documents(duplicates, begin, end)
            keys = read_documents(self.workspace.texts, task)["split_key"][numbers]
            held_out = in_validation(keys, self.config.shards.validation_share)
            kept.append(numbers + begin)
            training.append(numbers[~held_out] + begin)
        candidates = np.concatenate(training)
        if not len(candidates):  # a handful of documents whose hashes all fell into the validation split
            candidates = np.concatenate(kept)
        if languages := languages_of(self.config):
            return self._by_language(candidates, list(languages.values()))
        return candidates[evenly_spread(len(candidates), self.config.tokenizer.training_documents)]

    def _by_language(self, candidates: np.ndarray, languages: list[list[int]]) -> np.ndarray:
        """The candidates that languages, each some sources, are represented by: shares are those of the config."""
        language_of_source = np.zeros(len(self.config.sources), np.int32)
        for language, sources in enumerate(languages):
            language_of_source[sources] = language
        num_bytes = np.zeros(len(languages), np.int64)
        parts = []
        for task, (begin, end) in enumerate(zip(self.first_documents, self.first_documents[1:], strict=False)):
            first, last = np.searchsorted(candidates, [begin, end])
            documents = read_documents(self.workspace.texts, task)
            inside = candidates[first:last] - begin
            parts.append(language_of_source[documents["source"][inside]])
            sizes = np.diff(documents["text_end"].astype(np.int64), prepend=0)[inside]
            np.add.at(num_bytes, parts[-1], sizes)
        of_candidate = np.concatenate(parts)
        num_documents = np.bincount(of_candidate, minlength=len(languages))
        settings = self.config.tokenizer
        counts = sample_counts(num_bytes, num_documents, settings.language_exponent, settings.training_documents)
        chosen = [
            repeated_spread(candidates[of_candidate == number], count) for number, count in enumerate(counts.tolist())
        ]
        return np.sort(np.concatenate(chosen))

    def _texts(self) -> Iterator[str]:
        counter = TaskCounter(self.workspace.counters("tokenizer"), 0)
        numbers = self.training_documents()
        tasks = np.searchsorted(self.first_documents, numbers, side="right") - 1
        for task in np.unique(tasks).tolist():
            store = TextStore.open(self.workspace.texts, task)
            for number in numbers[tasks == task].tolist():
                document = number - self.first_documents[task]
                text = store.text_of(document)
                if self.config.sources[int(store.documents["source"][document])].kind == "fasta":
                    yield from (text[begin : begin + _WORD_LETTERS] for begin in range(0, len(text), _WORD_LETTERS))
                else:
                    yield text
                counter.finish(1)
