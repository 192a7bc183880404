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
from pipeline.corpus.languages import MIXTURE_NAME, folders_of, language_counts, languages_of, mixture_yaml
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
from pipeline.corpus.summary import (
    SHOWN_PROBLEMS,
    BuildSummary,
    bad_share_message,
    drops_of,
    summary_by_language,
    summary_of,
)
from pipeline.corpus.text_store import read_facts, store_size
from pipeline.corpus.tokenizer import TokenizerFacts, read_tokenizer_facts
from pipeline.corpus.units import group_units, write_tasks
from pipeline.corpus.workspace import (
    LOG_NAME,
    WORK_NAME,
    Workspace,
    complete_corpora,
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
        manifests = complete_corpora(config, output)
        was_complete = manifests is not None
        if manifests is not None:
            shutil.rmtree(output / WORK_NAME, ignore_errors=True)  # a build killed between its last two steps
        else:
            workspace = Workspace(output)
            with locked(workspace):
                manifests = _Build(config, workspace, processes, BuildConsole(console)).run()
                shutil.rmtree(workspace.root)
    seconds = time.monotonic() - started
    if config.shards.by_language:
        return summary_by_language(output, manifests, was_complete, seconds)
    return summary_of(output, manifests[""], was_complete, seconds)


class _Build:
    """One build in its workspace."""

    def __init__(self, config: CorpusConfig, workspace: Workspace, processes: int, console: BuildConsole) -> None:
        self.config = config
        self.workspace = workspace
        self.processes = processes
        self.console = console
        self.pool: ProcessPoolExecutor | None = None

    def run(self) -> dict[str, Manifest]:
        """The manifests of all corpus directories, by their names below the output."""
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
            deal = deal_documents(
                workspace.texts, workspace.encoded, len(tasks), config.shards, folders_of(config), workspace.deal
            )
            if not deal.num_documents:
                raise UserError("No documents are left: the tokenizer gives no token for any text.")
            self._check_languages(deal)
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

    def _check_languages(self, deal: Deal) -> None:
        """Refuse a language without a document: its corpus could not be trained on."""
        there = {shard.folder for shard in deal.shards}
        for folder in folders_of(self.config):
            if folder not in there:
                raise UserError(
                    f"No documents are left of language {folder!r}: all were bad, too short, duplicates of others, or "
                    "without tokens. Check its sources, or take them out."
                )

    def _finish(
        self, num_tasks: int, problems: list[dict[str, Any]], deal: Deal, facts: TokenizerFacts
    ) -> dict[str, Manifest]:
        """Publish the tokenizers and, last, the manifests (and behind them the mixture)."""
        workspace, output, config = self.workspace, self.workspace.output, self.config
        counts = self._counts_per_source(num_tasks)
        for task in range(num_tasks):
            problems = problems + read_facts(workspace.encoded, task)[1]
        self._write_log(problems)
        folders = folders_of(config)
        manifests = {
            folder: self._manifest(folder, own, counts, problems, deal, facts) for folder, own in folders.items()
        }
        for folder in folders:
            self._publish_tokenizer(output / folder / "tokenizer")
        remove_leftovers(workspace, config)
        for folder, manifest in manifests.items():
            write_manifest(output / folder, manifest)
        if config.shards.by_language:
            mixture = mixture_yaml(output, folders, config.tokenizer.language_exponent)
            write_bytes_atomically(output / MIXTURE_NAME, mixture.encode())
        return manifests

    def _publish_tokenizer(self, target: Path) -> None:
        if target.exists():
            shutil.rmtree(target)  # of an attempt that was killed right here
        copy = self.workspace.root / "publish"
        shutil.rmtree(copy, ignore_errors=True)  # likewise
        shutil.copytree(self.workspace.tokenizer, copy)
        publish_directory(copy, target)

    def _manifest(
        self,
        folder: str,
        sources: list[int],
        counts: dict[int, Counter[str]],
        problems: list[dict[str, Any]],
        deal: Deal,
        facts: TokenizerFacts,
    ) -> Manifest:
        """The manifest of one corpus directory, which these sources went into."""
        config, shard_facts = self.config, self.workspace.shard_facts
        total: Counter[str] = sum((counts[number] for number in sources), Counter())
        shards = written_facts(shard_facts, deal.shards, folder)
        held_out = validation_counts(shard_facts, deal.shards, folder, facts.vocab_size)
        extra = {
            "config_fingerprint": config_fingerprint(config),
            "seed": config.seed,
            "tokenizer": {name: value for name, value in asdict(config.tokenizer).items() if value is not None},
            "documents": total["documents"],
            "tokens": total["tokens"],
            "unknown_tokens": total["unknown_tokens"],
            "repeated_ids": deal.num_repeated_ids[folder],
            "validation_unigram_entropy": unigram_entropy(held_out),
            "problems": [problem for problem in problems if problem["source"] in sources][:SHOWN_PROBLEMS],
        }
        if languages := languages_of(config):
            own = {name: languages[name] for name in ([folder] if folder else languages)}
            extra["languages"] = language_counts(own, deal.by_source)
        return Manifest(
            tokenizer_fingerprint=facts.fingerprint,
            vocab_size=facts.vocab_size,
            special_ids=facts.special_ids,
            all_special_ids=facts.all_special_ids,
            splits={split: ShardTable.from_facts(found) for split, found in shards.items() if found},
            has_sentences=config.shards.sentences,
            has_words=config.shards.words,
            sources=[self._provenance(number, counts[number]) for number in sources],
            drops=drops_of(total),
            extra=extra,
        )

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
