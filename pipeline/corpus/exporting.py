"""`pretrain corpus export`: a corpus -> Megatron-LM's `.bin/.idx` or folders of `datasets`, token for token.

Documents go in the order of the shards, block by block, so memory holds one block.

Letters: D documents of a block, T tokens of a block, N sentences of a block.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.base.errors import UserError
from pipeline.base.files import directory_made_whole, write_json_atomically
from pipeline.corpus.console import BuildConsole
from pipeline.corpus.counters import TaskCounter, make_counters
from pipeline.corpus.disk import disk_errors
from pipeline.corpus.foreign import FORMS
from pipeline.corpus.megatron import MAX_SEQUENCE_TOKENS, MegatronWriter, megatron_dtype
from pipeline.corpus.token_source import TokenBatch
from pipeline.corpus.tokenized_datasets import DatasetWriter
from pipeline.shards.files import CorpusFiles, corpus_files
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest
from pipeline.shards.reader import Shard

_WHEN_FULL: Final = (
    "Free some space (an export to Megatron-LM needs 2 or 4 bytes a token, one to `datasets` 8) and run the same "
    "command: nothing of this attempt stays."
)


@dataclass(frozen=True)
class ExportSummary:
    """Facts of a finished export."""

    output: str
    """The folder."""

    format: str
    """``megatron`` or ``datasets``."""

    fingerprint: str
    """Of the corpus."""

    splits: dict[str, dict[str, int]]
    """Documents and tokens (those appended included) of every split."""

    append_eod: bool
    """Whether every document ends with the end-of-document id."""

    sentences: bool
    """Whether borders of sentences were written."""

    seconds: float
    """Time this command took."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        shown = [f"Exported in {self.seconds:.1f} s: {self.output} ({self.format})"]
        for split, facts in self.splits.items():
            shown.append(f"  {split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens")
        if self.append_eod:
            shown.append("  every document ends with the end-of-document id of the tokenizer")
        return shown


def export_corpus(
    directory: str | Path,
    output: Path,
    *,
    form: str,
    splits: Sequence[str] = (),
    append_eod: bool | None = None,
    sentences: bool = False,
    console: Console | None = None,
) -> ExportSummary:
    """Write the documents of a corpus in another program's format.

    Args:
        directory: the corpus, a path or URL.
        output: folder to make: ``SPLIT.bin`` and ``SPLIT.idx``, or what ``datasets.load_from_disk`` opens, and the
            tokenizer in ``tokenizer/``.
        form: ``"megatron"`` or ``"datasets"``.
        splits: default: all.
        append_eod: end every document with the tokenizer's eos id; default: for Megatron-LM, if there is one.
        sentences: Megatron-LM: a sequence is a sentence; datasets: a column ``sentence_starts``.

    Raises:
        UserError: anything the user must change; nothing is left in ``output``.
    """
    started = time.monotonic()
    output = Path(output)
    if form not in FORMS:
        raise UserError(f"--format {form}: choose one of {', '.join(FORMS)}.")
    files = corpus_files(directory)
    manifest = read_manifest(files)
    check_tokenizer(files, manifest)
    if missing := [split for split in splits if split not in manifest.splits]:
        raise UserError(f"--split {missing[0]}: {directory} has the splits {', '.join(manifest.splits)}.")
    eod = _end_of_document(manifest, form, append_eod)
    if output.exists() or output.is_symlink():
        raise UserError(f"--output {output} exists already. Choose another --output, or delete it first.")
    with disk_errors(output, _WHEN_FULL), directory_made_whole(output) as temporary:
        export = _Export(files, manifest, temporary, form, eod, sentences)
        facts = export.run(list(dict.fromkeys(splits)) or list(manifest.splits), BuildConsole(console))
    seconds = round(time.monotonic() - started, 3)
    return ExportSummary(str(output), form, manifest.fingerprint, facts, eod is not None, sentences, seconds)


def _end_of_document(manifest: Manifest, form: str, append_eod: bool | None) -> int | None:
    eos = manifest.special_ids["eos"]
    if append_eod and eos is None:
        raise UserError("--append-eod: the tokenizer of this corpus has no eos token to append. Leave it out.")
    wanted = form == "megatron" if append_eod is None else append_eod
    return eos if wanted else None


class _Export:
    """One export into a folder that is published when it is whole."""

    def __init__(
        self, files: CorpusFiles, manifest: Manifest, folder: Path, form: str, eod: int | None, sentences: bool
    ) -> None:
        self.files = files
        self.manifest = manifest
        self.folder = folder
        self.form = form
        self.eod = eod
        self.sentences = sentences

    def run(self, splits: Sequence[str], console: BuildConsole) -> dict[str, dict[str, int]]:
        """Write everything; documents and tokens of every split."""
        counters = self.folder / ".counters"
        make_counters(counters, 1)
        counter = TaskCounter(counters, 0)
        num_tokens = sum(int(self.manifest.splits[split].tokens.sum()) for split in splits)
        facts = {}
        with console.stage("Exporting tokens", num_tokens, " tokens", counters):
            for split in splits:
                facts[split] = self._write_split(split, counter)
        counters.unlink()
        if self.form == "datasets":
            write_json_atomically(self.folder / "dataset_dict.json", {"splits": list(splits)})
        shutil.copytree(self.files.tokenizer_directory(), self.folder / "tokenizer")
        return facts

    def _write_split(self, split: str, counter: TaskCounter) -> dict[str, int]:
        num_documents = num_tokens = 0
        with self._writer(split) as writer:
            for number in range(len(self.manifest.splits[split])):
                shard = Shard.open(self.files, split, number, self.manifest)
                sentences = shard.sentences() if self.sentences else None
                for block in range(len(shard.index.blocks)):
                    batch = block_of(shard, block, sentences)
                    counter.finish(len(batch.tokens))
                    batch = batch if self.eod is None else with_eod(batch, self.eod)
                    if int(np.diff(batch.borders).max()) > MAX_SEQUENCE_TOKENS:
                        raise UserError(f"{shard.path}: a document has more than {MAX_SEQUENCE_TOKENS} tokens.")
                    writer.add(batch)
                    num_documents += len(batch.ids)
                    num_tokens += len(batch.tokens)
        return {"documents": num_documents, "tokens": num_tokens}

    def _writer(self, split: str) -> MegatronWriter | DatasetWriter:
        if self.form == "megatron":
            return MegatronWriter(self.folder / split, megatron_dtype(self.manifest.vocab_size), self.sentences)
        if not sys.stderr.isatty():
            import datasets

            datasets.disable_progress_bars()
        facts = f"{self.manifest.fingerprint} {split} {self.eod} {self.sentences}"
        fingerprint = hashlib.sha256(facts.encode()).hexdigest()[:16]
        return DatasetWriter(self.folder / split, self.sentences, fingerprint)


def block_of(shard: Shard, block: int, sentences: tuple[NDArray[np.uint32], NDArray[np.int64]] | None) -> TokenBatch:
    """The documents of one block, verified.

    Args:
        sentences: what ``shard.sentences()`` gives, or None to leave them out.

    Raises:
        UserError: the block is damaged.
    """
    index = shard.index
    borders = np.append(index.blocks["first_document"].astype(np.int64), shard.documents)
    first, last = int(borders[block]), int(borders[block + 1])
    shard.check_blocks(np.array([block], np.int64))
    ends = np.append(0, np.cumsum(index.lengths[first:last], dtype=np.int64))
    starts = None
    if sentences is not None:
        lengths, first_sentence = sentences
        of_block = lengths[first_sentence[first] : first_sentence[last]]
        starts = np.append(0, np.cumsum(of_block, dtype=np.int64)[:-1])
    start = int(index.starts[first])
    tokens = shard.tokens[start : start + int(ends[-1])]
    return TokenBatch(shard.document_ids(range(first, last)), tokens, ends, starts)


def with_eod(batch: TokenBatch, eod: int) -> TokenBatch:
    """The batch with ``eod`` after the last token of every document, in its last sentence."""
    num_documents = len(batch.borders) - 1
    tokens = np.insert(batch.tokens, batch.borders[1:], eod)
    sentences = batch.sentences
    if sentences is not None:
        sentences = sentences + np.searchsorted(batch.borders, sentences, side="right") - 1
    return TokenBatch(batch.ids, tokens, batch.borders + np.arange(num_documents + 1), sentences)
