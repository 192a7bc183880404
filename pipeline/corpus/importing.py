"""`pretrain corpus import`: tokenised documents of other programs -> a corpus directory, token for token.

Two passes over the source: the first reads lengths and names and decides splits and shards, the second writes them.
Documents stay in the order of the source. Memory: about 120 bytes a document, and one batch and two blocks of tokens.

Letters: D documents of a source, P pieces of a batch.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.base.errors import UserError
from pipeline.base.files import directory_made_whole, sha256_of_file
from pipeline.config.checks import corpus_problems
from pipeline.config.corpus import CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus.console import BuildConsole
from pipeline.corpus.counters import TaskCounter, make_counters
from pipeline.corpus.dealing import unigram_entropy
from pipeline.corpus.disk import disk_errors
from pipeline.corpus.foreign import ForeignSource, open_foreign
from pipeline.corpus.import_shards import IMPORT_SEED, Deal, SplitWriter, deal_source
from pipeline.corpus.special_ids import IdFacts, Pieces, id_facts, sentence_starts, strip
from pipeline.corpus.summary import BuildSummary, summary_of
from pipeline.corpus.token_source import TokenBatch
from pipeline.corpus.tokenizer import TokenizerFacts, make_tokenizer
from pipeline.shards.layout import token_dtype
from pipeline.shards.manifest import Manifest, ShardTable, write_manifest
from pipeline.shards.writer import ShardFacts

_WHEN_FULL: Final = (
    "Free some space (an import needs the size of the tokens) and run the same command: nothing of this attempt stays."
)


def import_corpus(
    source: Path,
    output: Path,
    *,
    tokenizer: str,
    form: str | None = None,
    splits: Sequence[str] = (),
    name: str | None = None,
    validation_share: float | None = None,
    shards: ShardConfig | None = None,
    console: Console | None = None,
) -> BuildSummary:
    """Make a corpus of documents that are tokenised already.

    Args:
        source: a pair of Megatron-LM (path without ending, or either file), a folder of such pairs, a folder of
            ``datasets.save_to_disk``, a folder of Parquet files.
        tokenizer: folder or hub name of the tokenizer that the source was tokenised with.
        form: ``"megatron"`` or ``"datasets"``; default: what is found.
        splits: splits of the source; default: its only one, or ``train`` and ``validation``.
        name: first part of the documents' names; default: the last part of the path.
        validation_share: of the documents, by a hash of their names; not where the source has a validation split.
        shards: sizes of shards and blocks, and whether to keep sentences and word starts.

    Raises:
        UserError: anything the user must change; nothing is left in ``output``.
    """
    started = time.monotonic()
    source, output = Path(source), Path(output)
    shards = shards or ShardConfig()
    shards = replace(shards, validation_share=shards.validation_share if validation_share is None else validation_share)
    _check_settings(source, shards)
    if output.exists() or output.is_symlink():
        raise UserError(f"--output {output} exists already. Choose another --output, or delete it first.")
    foreign = open_foreign(source, form, splits, name)
    if foreign.keeps_splits and validation_share is not None:
        raise UserError(
            f"{source} has a validation split of its own: leave --validation-share out, or choose `--split train`."
        )
    with disk_errors(output, _WHEN_FULL), directory_made_whole(output) as temporary:
        manifest, notes = _Import(foreign, temporary, shards, BuildConsole(console)).run(tokenizer)
    summary = summary_of(output, manifest, was_complete=False, seconds=time.monotonic() - started)
    return replace(summary, notes=[*summary.notes, *notes])


def _check_settings(source: Path, shards: ShardConfig) -> None:
    stand_in = SourceConfig("source", "datasets", str(source))
    if problems := corpus_problems(CorpusConfig([stand_in], shards=shards)):
        raise UserError(" ".join(problems))


class _Import:
    """One import into a directory that is published when it is whole."""

    def __init__(self, foreign: ForeignSource, directory: Path, shards: ShardConfig, console: BuildConsole) -> None:
        self.foreign = foreign
        self.directory = directory
        self.work = directory / ".work"
        self.shards = shards
        self.has_sentences = shards.sentences and all(source.has_sentences for source in foreign.sources.values())
        self.console = console
        self.counts: dict[str, Counter[str]] = {split: Counter() for split in foreign.sources}
        self.validation_counts = np.zeros(0, np.int64)

    def run(self, tokenizer: str) -> tuple[Manifest, list[str]]:
        """The manifest that was written, and notes for the user."""
        self.work.mkdir()
        facts = self._copy_tokenizer(tokenizer)
        ids = id_facts(facts, self.directory / "tokenizer", self.shards.words)
        self.validation_counts = np.zeros(facts.vocab_size, np.int64)
        deals = {
            split: deal_source(source, split, self.foreign.keeps_splits, self.shards)
            for split, source in self.foreign.sources.items()
        }
        if not any(deal.num_tokens for deal in deals.values()):
            raise UserError(f"{self.foreign.location} holds no tokens. Give a source with at least one document.")
        facts_of_shards = self._write(deals, ids)
        if not facts_of_shards["train"]:
            raise UserError(f"{self.foreign.location} holds no text to train on: its documents hold special ids only.")
        manifest = self._manifest(
            facts, facts_of_shards, ids.begins_word is not None, sum(deal.num_repeated_ids for deal in deals.values())
        )
        shutil.rmtree(self.work)
        write_manifest(self.directory, manifest)
        return manifest, self._notes(ids.begins_word is not None)

    def _copy_tokenizer(self, tokenizer: str) -> TokenizerFacts:
        try:
            facts = make_tokenizer(
                TokenizerConfig(path=tokenizer), lambda: (), self.directory / "tokenizer", self.work / "tokenizer.json"
            )
        except UserError as error:  # its messages name the config's field
            raise UserError(str(error).replace("tokenizer.path", "--tokenizer")) from error
        own = self.foreign.location / "tokenizer"
        if (own / "tokenizer.json").is_file() and sha256_of_file(own / "tokenizer.json") != facts.fingerprint:
            raise UserError(
                f"--tokenizer {tokenizer} is not the tokenizer of {self.foreign.location}, which stands in {own}: the "
                "ids would mean other text. Give that folder."
            )
        return facts

    def _write(self, deals: dict[str, Deal], ids: IdFacts) -> dict[str, list[ShardFacts]]:
        """Second pass: the facts of all shards by split of ours."""
        make_counters(self.work / "counters", 1)
        counter = TaskCounter(self.work / "counters", 0)
        num_tokens = sum(deal.num_tokens for deal in deals.values())
        stage = self.console.stage("Importing tokens", num_tokens, " tokens", self.work / "counters")
        with ExitStack() as stack:
            stack.enter_context(stage)
            writers = [
                stack.enter_context(SplitWriter(self.directory, split, token_dtype(ids.vocab_size), self.shards))
                for split in ("train", "validation")
            ]
            for split, source in self.foreign.sources.items():
                first = 0
                for batch in source.batches():
                    pieces = strip(batch, ids, source.cuts_at_eod)
                    self._count(self.counts[split], batch, pieces, ids)
                    self._write_batch(batch, pieces, ids, deals[split], first, writers)
                    first += len(batch.ids)
                    counter.finish(len(batch.tokens))
        return {writer.split: writer.facts for writer in writers}

    def _write_batch(
        self,
        batch: TokenBatch,
        pieces: Pieces,
        ids: IdFacts,
        deal: Deal,
        first: int,
        writers: Sequence[SplitWriter],
    ) -> None:
        """Write the pieces; ``first`` is the number of the batch's first document in the source."""
        document = pieces.document
        held_out = [np.zeros(0, batch.tokens.dtype)]
        validation, shard = deal.validation[first + document], deal.shard[first + document]
        for name, begin, end, is_validation, number in zip(
            _names(batch, document),
            pieces.begin.tolist(),
            pieces.end.tolist(),
            validation.tolist(),
            shard.tolist(),
            strict=True,
        ):
            tokens = batch.tokens[begin:end]
            starts = sentence_starts(batch, begin, end) if self.has_sentences else None
            words = None
            if ids.begins_word is not None:
                words = ids.begins_word[tokens]
                words[0] = True
            writers[is_validation].of_shard(number).add(name, tokens, starts, words)
            if is_validation:
                held_out.append(tokens)
        if len(held_out) > 1:
            self.validation_counts += np.bincount(np.concatenate(held_out), minlength=len(self.validation_counts))

    def _count(self, count: Counter[str], batch: TokenBatch, pieces: Pieces, ids: IdFacts) -> None:
        count["records"] += len(batch.ids)
        count["documents"] += len(pieces.document)
        count["tokens"] += int((pieces.end - pieces.begin).sum())
        count["stripped_special_ids"] += pieces.num_stripped
        count["cuts"] += pieces.num_cuts
        count["only_special_ids"] += len(batch.ids) - len(np.unique(pieces.document))
        if ids.unknown is not None:
            count["unknown_tokens"] += int((batch.tokens == ids.unknown).sum())

    def _manifest(
        self,
        facts: TokenizerFacts,
        facts_of_shards: dict[str, list[ShardFacts]],
        has_words: bool,
        num_repeated_ids: int,
    ) -> Manifest:
        total: Counter[str] = sum(self.counts.values(), Counter())
        return Manifest(
            tokenizer_fingerprint=facts.fingerprint,
            vocab_size=facts.vocab_size,
            special_ids=facts.special_ids,
            all_special_ids=facts.all_special_ids,
            splits={split: ShardTable.from_facts(shards) for split, shards in facts_of_shards.items() if shards},
            has_sentences=self.has_sentences,
            has_words=has_words,
            sources=[self._provenance(split, count) for split, count in self.counts.items()],
            drops=_drops(total),
            extra={
                "seed": IMPORT_SEED,
                "documents": total["documents"],
                "tokens": total["tokens"],
                "unknown_tokens": total["unknown_tokens"],
                "repeated_ids": num_repeated_ids,
                "validation_unigram_entropy": unigram_entropy(self.validation_counts),
            },
        )

    def _provenance(self, split: str, count: Counter[str]) -> dict[str, Any]:
        names = ("records", "documents", "tokens", "stripped_special_ids", "cuts")
        return {
            "name": self.foreign.name,
            "kind": self.foreign.form,
            "path": str(self.foreign.location),
            "split": split,
            **{name: count[name] for name in names},
            "drops": _drops(count),
        }

    def _notes(self, has_words: bool) -> list[str]:
        total: Counter[str] = sum(self.counts.values(), Counter())
        notes = []
        if total["stripped_special_ids"]:
            notes.append(f"{total['stripped_special_ids']:,} special ids were left out: rows add their own")
        if total["cuts"]:
            notes.append(f"documents were cut at an end-of-document id inside: {total['cuts']:,} times")
        if not has_words:
            notes.append("no word starts (token ids of this tokenizer do not tell them): no whole-word or span masking")
        return notes


def _names(batch: TokenBatch, document: NDArray[np.int64]) -> list[str]:
    """A name for every piece: that of its document, with ``.0``, ``.1`` ... where there are several."""
    if len(document) == len(np.unique(document)):
        return [batch.ids[number] for number in document.tolist()]
    counts = np.bincount(document, minlength=len(batch.ids))
    place = np.arange(len(document)) - np.searchsorted(document, document)
    return [
        batch.ids[number] + (f".{part}" if counts[number] > 1 else "")
        for number, part in zip(document.tolist(), place.tolist(), strict=True)
    ]


def _drops(count: Counter[str]) -> dict[str, int]:
    return {"only_special_ids": count["only_special_ids"]} if count["only_special_ids"] else {}
