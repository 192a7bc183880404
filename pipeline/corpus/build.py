"""`pretrain corpus build`: the story of a build, stage by stage.

Every stage is a datatrove pipeline whose number of tasks comes from the input, so the corpus has the same bytes
whatever the number of processes; every finished task leaves a mark, so a build that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.base.errors import UserError
from pipeline.base.files import publish_directory, write_bytes_atomically
from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.console import BuildConsole
from pipeline.corpus.counters import make_counters
from pipeline.corpus.dealing import unigram_entropy
from pipeline.corpus.disk import disk_errors
from pipeline.corpus.executor import CorpusExecutor, check_processes, worker_pool
from pipeline.corpus.sharding import Deal, deal_documents, validation_counts, written_facts
from pipeline.corpus.sources import cut_into_units, find_files
from pipeline.corpus.stages import (
    Stage,
    duplicates_stage,
    encoded_stage,
    shards_stage,
    texts_stage,
    tokenizer_stage,
)
from pipeline.corpus.summary import SHOWN_PROBLEMS, BuildSummary, bad_share_message, drops_of, summary_of
from pipeline.corpus.text_store import read_facts, store_size
from pipeline.corpus.tokenizer import TokenizerFacts, read_tokenizer_facts
from pipeline.corpus.units import group_units, write_tasks
from pipeline.corpus.workspace import (
    LOG_NAME,
    WORK_NAME,
    Workspace,
    complete_corpus,
    config_fingerprint,
    locked,
    remove_leftovers,
    starts_anew,
)
from pipeline.shards.manifest import Manifest, ShardTable, write_manifest

_WHEN_FULL = (
    "Free some space (a build needs about the size of the text and twice that of the tokens) and run the same command: "
    "it goes on where it stopped."
)


def build_corpus(
    config: CorpusConfig, output: Path, *, processes: int | None = None, console: Console | None = None
) -> BuildSummary:
    """Build the corpus ``config`` describes into ``output``, or go on with a build that was interrupted there.

    Args:
        processes: worker processes; default: the cores this process may use. Never changes a byte of the corpus.
        console: where progress goes (a bar on a terminal, plain lines otherwise); default: standard error.

    Raises:
        UserError: anything the user must change: sources, fields, tokenizer, output directory, too many bad records, a
            full disk. What was finished stays, and the same command goes on from there.
    """
    started = time.monotonic()
    processes = check_processes(processes)
    output = Path(output)
    with disk_errors(output, _WHEN_FULL):
        manifest = complete_corpus(config_fingerprint(config), output)
        if manifest is not None:
            shutil.rmtree(output / WORK_NAME, ignore_errors=True)  # a build killed between its last two steps
            return summary_of(output, manifest, was_complete=True, seconds=time.monotonic() - started)
        workspace = Workspace(output)
        with locked(workspace):
            manifest = _Build(config, workspace, processes, BuildConsole(console)).run()
            shutil.rmtree(workspace.root)
    return summary_of(output, manifest, was_complete=False, seconds=time.monotonic() - started)


class _Build:
    """One build in its workspace."""

    def __init__(self, config: CorpusConfig, workspace: Workspace, processes: int, console: BuildConsole) -> None:
        self.config = config
        self.workspace = workspace
        self.processes = processes
        self.console = console
        self.pool: ProcessPoolExecutor | None = None

    def run(self) -> Manifest:
        config, workspace = self.config, self.workspace
        files = find_files(config.sources, workspace.root)
        if starts_anew(workspace, config, files):
            self.console.line("The input has changed since this build was interrupted: starting over.")
        units = cut_into_units(files, config.tasks)
        tasks = group_units(units, config.tasks)
        write_tasks(workspace.tasks, tasks)
        with worker_pool(self.processes) as self.pool:
            self._run(texts_stage(config, workspace, len(tasks), sum(unit.weight for unit in units)))
            problems = self._check_bad_share(len(tasks))
            sizes = [store_size(workspace.texts, task) for task in range(len(tasks))]
            first_documents = [0, *accumulate(num_documents for num_documents, _ in sizes)]
            num_bytes = sum(num_text_bytes for _, num_text_bytes in sizes)
            if not first_documents[-1]:
                raise UserError(
                    "No documents are left after cleaning: check the sources, `text_field` and cleaning.min_characters "
                    f"({config.cleaning.min_characters})."
                )
            if config.cleaning.deduplicate:
                self._run(duplicates_stage(workspace, first_documents))
            self._run(tokenizer_stage(config, workspace, first_documents))
            self._run(encoded_stage(config, workspace, first_documents, num_bytes))
            facts = read_tokenizer_facts(workspace.tokenizer_facts)
            deal = deal_documents(workspace.texts, workspace.encoded, len(tasks), config.shards, workspace.deal)
            if not deal.num_documents:
                raise UserError("No documents are left: the tokenizer gives no token for any text.")
            self._run(shards_stage(config, workspace, deal, facts))
        return self._finish(len(tasks), problems, deal, facts)

    def _run(self, stage: Stage) -> None:
        counters = self.workspace.counters(stage.name)
        make_counters(counters, stage.num_tasks)
        pool = None if stage.in_parent else self.pool
        executor = CorpusExecutor(stage.pipeline, stage.num_tasks, self.workspace.stage(stage.name), pool)
        with self.console.stage(stage.title, stage.total, stage.unit, counters):
            executor.run()

    def _check_bad_share(self, num_tasks: int) -> list[dict[str, Any]]:
        """All bad places in input order, also written to the build log."""
        problems: list[dict[str, Any]] = []
        num_records = 0
        for task in range(num_tasks):
            facts, found = read_facts(self.workspace.texts, task)
            problems += found
            num_records += sum(counts["records"] for counts in facts.values())
        self._write_log(problems)
        limit = self.config.cleaning.max_bad_share
        if len(problems) > limit * num_records:
            log = self.workspace.output / LOG_NAME
            raise UserError(bad_share_message(problems, num_records, limit, log))
        return problems

    def _write_log(self, problems: Sequence[dict[str, Any]]) -> None:
        named = ({**problem, "source": self.config.sources[problem["source"]].name} for problem in problems)
        content = "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in named)
        write_bytes_atomically(self.workspace.output / LOG_NAME, content.encode("utf-8", "replace"))

    def _finish(self, num_tasks: int, problems: list[dict[str, Any]], deal: Deal, facts: TokenizerFacts) -> Manifest:
        """Publish the tokenizer and, last, the manifest."""
        workspace, output = self.workspace, self.workspace.output
        counts = self._counts_per_source(num_tasks)
        for task in range(num_tasks):
            problems = problems + read_facts(workspace.encoded, task)[1]
        self._write_log(problems)
        if (output / "tokenizer").exists():
            shutil.rmtree(output / "tokenizer")  # of an attempt that was killed right here
        shutil.rmtree(workspace.root / "publish", ignore_errors=True)  # likewise
        shutil.copytree(workspace.tokenizer, workspace.root / "publish")
        publish_directory(workspace.root / "publish", output / "tokenizer")
        tables = {split: ShardTable.from_facts(shards) for split, shards in self._shards(deal).items() if shards}
        total: Counter[str] = sum(counts.values(), Counter())
        extra = {
            "config_fingerprint": config_fingerprint(self.config),
            "seed": self.config.seed,
            "tokenizer": {name: value for name, value in asdict(self.config.tokenizer).items() if value is not None},
            "documents": deal.num_documents,
            "tokens": deal.num_tokens,
            "unknown_tokens": total["unknown_tokens"],
            "repeated_ids": deal.num_repeated_ids,
            "validation_unigram_entropy": unigram_entropy(validation_counts(workspace.shard_facts, facts.vocab_size)),
            "problems": problems[:SHOWN_PROBLEMS],
        }
        manifest = Manifest(
            tokenizer_fingerprint=facts.fingerprint,
            vocab_size=facts.vocab_size,
            special_ids=facts.special_ids,
            all_special_ids=facts.all_special_ids,
            splits=tables,
            has_sentences=self.config.shards.sentences,
            has_words=self.config.shards.words,
            sources=[self._provenance(number, counts[number]) for number in range(len(self.config.sources))],
            drops=drops_of(total),
            extra=extra,
        )
        remove_leftovers(workspace)
        write_manifest(output, manifest)
        return manifest

    def _shards(self, deal: Deal) -> dict[str, Any]:
        return written_facts(self.workspace.shard_facts, deal.shards)

    def _counts_per_source(self, num_tasks: int) -> dict[int, Counter[str]]:
        """Records, documents, characters, bytes, tokens and drops of every source."""
        counts: dict[int, Counter[str]] = {number: Counter() for number in range(len(self.config.sources))}
        for task in range(num_tasks):
            for facts in (read_facts(self.workspace.texts, task)[0], read_facts(self.workspace.encoded, task)[0]):
                for source, found in facts.items():
                    counts[source].update(found)
        for count in counts.values():
            count["drop:duplicate"] = count["clean_documents"] - count["documents"] - count["drop:no_tokens"]
        return counts

    def _provenance(self, number: int, counts: Counter[str]) -> dict[str, Any]:
        source = self.config.sources[number]
        settings = {name: value for name, value in asdict(source).items() if value is not None}
        measured = {name: counts[name] for name in ("records", "documents", "characters", "bytes", "tokens")}
        return {**settings, **measured, "drops": drops_of(counts)}
