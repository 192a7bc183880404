"""`pretrain corpus synthesize`: a corpus directory of documents that are made, not read.

Splits and shards follow from the settings alone, and a shard from its documents' numbers, so the corpus has the same
bytes whatever the number of processes. Memory: about 60 bytes a document, and one block of tokens a process.

Letters: D documents of the corpus, N documents of a shard, V ids.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.base.files import directory_made_whole
from pipeline.config.synthetic import SyntheticConfig
from pipeline.corpus.console import BuildConsole
from pipeline.corpus.counters import TaskCounter, make_counters
from pipeline.corpus.dealing import shard_numbers, unigram_entropy, with_both_splits
from pipeline.corpus.disk import disk_errors
from pipeline.corpus.executor import check_processes, worker_pool
from pipeline.corpus.sharding import SPLITS
from pipeline.corpus.summary import BuildSummary, summary_of
from pipeline.corpus.synthetic import document_lengths, document_maker, split_keys, word_names
from pipeline.corpus.tokenizer import TokenizerFacts, save_tokenizer
from pipeline.corpus.word_tokenizer import first_word_id, word_tokenizer
from pipeline.corpus.workspace import complete_corpus
from pipeline.shards.layout import shard_path, token_dtype
from pipeline.shards.manifest import Manifest, ShardTable, write_manifest
from pipeline.shards.writer import ShardFacts, ShardWriter

SYNTHESIS_VERSION: Final = 1
"""Raised when the same config would give other bytes."""

_WORK_NAME: Final = ".work"
_WHEN_FULL: Final = (
    "Free some space (a synthetic corpus needs the size of its tokens) and run the same command: nothing of this "
    "attempt stays."
)


@dataclass(frozen=True, eq=False)
class ShardTask:
    """One shard to write."""

    split: str
    """``train`` or ``validation``."""

    number: int
    """Of the shard in its split."""

    documents: NDArray[np.int64]
    """Numbers of its documents, increasing, (N,)."""


def synthesize_corpus(
    config: SyntheticConfig, output: Path, *, processes: int | None = None, console: Console | None = None
) -> BuildSummary:
    """Make the synthetic corpus ``config`` describes in ``output``, which becomes whole or does not appear.

    Args:
        config: checked by ``load_synthetic_config``.
        processes: worker processes; default: the cores this process may use. Never changes a byte of the corpus.
        console: where progress goes (a bar on a terminal, plain lines otherwise); default: standard error.

    Raises:
        UserError: ``output`` holds another corpus or other files, or the disk is full.
    """
    started = time.monotonic()
    processes = check_processes(processes)
    output = Path(output)
    with disk_errors(output, _WHEN_FULL):
        manifest = complete_corpus(synthesis_fingerprint(config), output)
        was_complete = manifest is not None
        if manifest is None:
            with directory_made_whole(output) as temporary:
                manifest = _write_corpus(config, temporary, processes, BuildConsole(console))
    return summary_of(output, manifest, was_complete=was_complete, seconds=time.monotonic() - started)


def synthesis_fingerprint(config: SyntheticConfig) -> str:
    """sha256 of all settings that the bytes of the corpus depend on."""
    value = asdict(config)
    del value["shards"]["by_language"]  # has no use here
    settings = ["synthetic", SYNTHESIS_VERSION, value]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def deal_numbers(config: SyntheticConfig) -> list[ShardTask]:
    """Which documents go to which shard, in the order in which the shards are written.

    A hash of a document's number says whether it is held out. Documents of a split stay in order: each is as random
    as any other, so a shard of consecutive ones is a fair sample.
    """
    lengths = document_lengths(config, np.arange(config.documents))  # D
    validation = np.zeros(config.documents, np.bool_)  # D
    if config.documents > 1:
        validation = with_both_splits(split_keys(config), config.shards.validation_share)
    tasks = []
    for split, chosen in zip(SPLITS, (~validation, validation), strict=True):
        documents = np.flatnonzero(chosen)
        numbers = shard_numbers(lengths[documents], config.shards.tokens, config.shards.documents)
        ends = (np.flatnonzero(np.diff(numbers, append=-1)) + 1).tolist()
        for number, (begin, end) in enumerate(pairwise([0, *ends])):
            tasks.append(ShardTask(split, number, documents[begin:end]))
    return tasks


def write_shard(
    config: SyntheticConfig, directory: Path, vocab_size: int, task: ShardTask, counters: Path, rank: int
) -> tuple[ShardFacts, NDArray[np.int64]]:
    """Make the documents of a shard and write it.

    Args:
        vocab_size: ids, special ones included.
        counters, rank: where to count the tokens that are done.

    Returns:
        facts for the manifest; for the validation split the tokens of every id, int64 (V,), else (0,).
    """
    make, first_id = document_maker(config), first_word_id(config.style)
    counter = TaskCounter(counters, rank)
    held_out = task.split == "validation"
    counts = np.zeros(vocab_size if held_out else 0, np.int64)
    lengths = document_lengths(config, task.documents)
    path = shard_path(directory, task.split, task.number)
    with ShardWriter(path, token_dtype(vocab_size), config.shards.block_tokens) as writer:
        for number, length in zip(task.documents.tolist(), lengths.tolist(), strict=True):
            tokens = make(number, length) + first_id
            sentences = np.arange(0, length, config.sentence_length) if config.shards.sentences else None
            words = np.ones(length, np.bool_) if config.shards.words else None
            writer.add(f"{config.kind}/{number}", tokens, sentences, words)
            counter.finish(length)
            if held_out:
                np.add.at(counts, tokens, 1)
        return writer.close(), counts


def _write_corpus(config: SyntheticConfig, directory: Path, processes: int, console: BuildConsole) -> Manifest:
    """Tokenizer, shards and, last, the manifest."""
    work = directory / _WORK_NAME
    work.mkdir()
    tokenizer = save_tokenizer(
        word_tokenizer(word_names(config), config.style), directory / "tokenizer", "The word tokenizer"
    )
    tasks = deal_numbers(config)
    make_counters(work / "counters", len(tasks))
    num_tokens = int(sum(document_lengths(config, task.documents).sum() for task in tasks))
    arguments = [
        (config, directory, tokenizer.vocab_size, task, work / "counters", rank) for rank, task in enumerate(tasks)
    ]
    with (
        worker_pool(min(processes, len(tasks)), keeps_work=False) as pool,
        console.stage("Making documents", num_tokens, " tokens", work / "counters"),
    ):
        written = _run(pool, arguments)
    shutil.rmtree(work)
    facts: dict[str, list[ShardFacts]] = {split: [] for split in SPLITS}
    counts = np.zeros(tokenizer.vocab_size, np.int64)  # V
    for task, (of_shard, of_ids) in zip(tasks, written, strict=True):
        facts[task.split].append(of_shard)
        if len(of_ids):
            counts += of_ids
    manifest = _manifest(config, tokenizer, facts, counts)
    write_manifest(directory, manifest)
    return manifest


def _run(pool: ProcessPoolExecutor | None, arguments: list[Any]) -> list[tuple[ShardFacts, NDArray[np.int64]]]:
    if pool is None:
        return [write_shard(*of_shard) for of_shard in arguments]
    futures = [pool.submit(write_shard, *of_shard) for of_shard in arguments]
    return [future.result() for future in futures]


def _manifest(
    config: SyntheticConfig,
    tokenizer: TokenizerFacts,
    facts: dict[str, list[ShardFacts]],
    validation_counts: NDArray[np.int64],
) -> Manifest:
    total: Counter[str] = Counter()
    for shard in [shard for shards in facts.values() for shard in shards]:
        total.update(documents=shard.documents, tokens=shard.tokens)
    settings = {name: value for name, value in asdict(config).items() if name != "shards"}
    provenance = {"name": config.kind, "kind": "synthetic", "settings": settings, "records": total["documents"]}
    return Manifest(
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        all_special_ids=tokenizer.all_special_ids,
        splits={split: ShardTable.from_facts(shards) for split, shards in facts.items() if shards},
        has_sentences=config.shards.sentences,
        has_words=config.shards.words,
        sources=[{**provenance, **total, "drops": {}}],
        extra={
            "config_fingerprint": synthesis_fingerprint(config),
            "seed": config.seed,
            **total,
            "unknown_tokens": 0,
            "repeated_ids": 0,
            "validation_unigram_entropy": unigram_entropy(validation_counts),
        },
    )
