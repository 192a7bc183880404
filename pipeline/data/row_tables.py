"""The rows of every shard under a packing: a closed form of the manifest, or a table derived once from the indexes.

Letters: N shards of a split.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import MAX_PERMUTATION
from pipeline.base.logs import get_logger
from pipeline.data.packing import Packing, check_context, find_packing
from pipeline.data.pieces import MAX_ITEMS
from pipeline.data.row_format import RowKind, row_format
from pipeline.data.rows import RowFormat
from pipeline.data.source import OpenSource, Source
from pipeline.shards.files import CorpusFiles, LocalFiles
from pipeline.shards.layout import shard_name, token_dtype
from pipeline.shards.manifest import ShardTable, read_manifest

_SHARDS_A_TASK: Final = 256
"""Below this a second process would cost more than it saves."""


def rows_per_shard(source: OpenSource, packing: Packing, row_format: RowFormat) -> NDArray[np.int64]:
    """R_s of every shard of a source, int64 (N,).

    A counted table is kept under ``rows/`` as npy and sha256, named by packing, version, S, overhead, split and the
    shards it was made from. Where the corpus is not writable it is counted at every opening.

    Raises:
        UserError: a damaged index, a shard with more documents or bytes than a plan can number, or a remote corpus
            without the table.
    """
    table = source.table
    largest = int(table.documents.argmax())
    if int(table.documents[largest]) > MAX_PERMUTATION:
        raise UserError(
            f"Shard {shard_name(source.split, largest)} has {table.documents[largest]} documents; at most "
            f"{MAX_PERMUTATION} can be shuffled. Build the corpus with a smaller shards.documents."
        )
    item_bytes = token_dtype(source.manifest.vocab_size).itemsize
    longest = int(table.bytes.argmax())
    if int(table.bytes[longest]) > MAX_ITEMS * item_bytes:
        raise UserError(
            f"Shard {shard_name(source.split, longest)} has {table.bytes[longest]} bytes; rows can be made of at most "
            f"{MAX_ITEMS * item_bytes}. Build the corpus with a smaller shards.tokens."
        )
    if packing.closed_form is not None:
        return packing.closed_form(table.documents, table.tokens, row_format)
    name = table_name(source.split, table, packing, row_format)
    kept = _read_table(source.files, name, len(table))
    if kept is not None:
        return kept
    if source.files.is_remote:
        kind = "gpt" if row_format.end_only_at_document_end else "bert"
        with_context = f" --context-tokens {row_format.context_tokens}" if row_format.context_tokens else ""
        raise UserError(
            f"{source.files.describe(name)} does not exist, or is no such table: the rows of every shard under packing "
            f"{packing.name} at {row_format.sequence_length} tokens, to be counted from all {len(table)} indexes. Run "
            f"`pretrain corpus count-rows DIRECTORY --packing {packing.name} --kind {kind} --sequence-length "
            f"{row_format.sequence_length}{with_context}` on the corpus where it is local and upload its `rows` folder,"
            " or set data.packing to concatenate, which needs no table."
        )
    with source.files.lock_derived():  # ranks of a node start together: one counts, the others read
        kept = _read_table(source.files, name, len(table))
        if kept is None:
            kept = _count(source, packing, row_format)
            _keep_table(source.files, name, kept)
    return kept


def count_rows(
    directory: Path, packing: str, kind: RowKind, sequence_length: int, context_tokens: int = 0
) -> dict[str, int]:
    """Make the tables of all splits of a local corpus, for readers who have only its copy elsewhere.

    Returns:
        rows of every split.

    Raises:
        UserError: no corpus, no such packing, a context that it cannot have, a tokenizer that lacks what the rows need,
            or tables that cannot be kept.
    """
    files = LocalFiles(directory)
    manifest = read_manifest(files)
    found = find_packing(packing)
    check_context(found, context_tokens)
    form = row_format(manifest, kind, sequence_length, found.needs_sentences, context_tokens)
    rows = {}
    for split, table in manifest.splits.items():
        if int(table.documents.sum()):
            source = OpenSource(Source(files, manifest), 0, split, 1)
            rows[f"rows_{split}"] = int(rows_per_shard(source, found, form).sum())
            name = table_name(split, table, found, form)
            if found.closed_form is None and _read_table(files, name, len(table)) is None:
                raise UserError(
                    f"The rows were counted, but {files.describe(name)} could not be written. Check the owner, the "
                    "mode and the free space of the corpus directory."
                )
    return rows


def table_name(split: str, table: ShardTable, packing: Packing, row_format: RowFormat) -> str:
    """``rows/best_fit-1-512-2.train-<12 hex of the shards' digests>.npy``; a context follows the overhead."""
    shards = hashlib.sha256(table.sha256.encode()).hexdigest()[:12]
    settings = f"{packing.name}-{packing.version}-{row_format.sequence_length}-{row_format.overhead}"
    if row_format.context_tokens:
        settings += f"-{row_format.context_tokens}"
    return f"rows/{settings}.{split}-{shards}.npy"


def _count(source: OpenSource, packing: Packing, row_format: RowFormat) -> NDArray[np.int64]:
    num_shards = len(source.table)
    tasks = [
        (source, packing.name, row_format, begin, min(begin + _SHARDS_A_TASK, num_shards))
        for begin in range(0, num_shards, _SHARDS_A_TASK)
    ]
    if len(tasks) > 1:
        get_logger("data").info(
            "counting the rows of %d shards (once; kept in %s)", num_shards, source.files.describe("rows")
        )
    return np.fromiter(_counts(tasks), np.int64, num_shards)


_Task = tuple[OpenSource, str, RowFormat, int, int]


def _counts(tasks: list[_Task]) -> Iterator[int]:
    processes = min(len(tasks), len(os.sched_getaffinity(0)))
    if processes < 2:
        for task in tasks:
            yield from _count_shards(task)
        return
    # Spawned: the process may already run threads (a trainer's, a loader's), which a fork would tear.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for counted in pool.map(_count_shards, tasks):
            yield from counted


def _count_shards(task: _Task) -> list[int]:
    source, name, row_format, begin, end = task
    packing = find_packing(name)
    return [
        packing.count_rows(source.lengths(number, source.index(number), packing.needs_sentences), row_format)
        for number in range(begin, end)
    ]


def _read_table(files: CorpusFiles, name: str, num_shards: int) -> NDArray[np.int64] | None:
    """A kept table, or None if there is none that fits: where the corpus is local it can always be counted again."""
    try:
        content = files.read(name)
    except (OSError, UserError) as error:
        if files.is_remote and not isinstance(error, FileNotFoundError):
            raise
        return None
    try:
        kept = np.load(buffer := io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    size = buffer.tell()
    if content[size:] != _digest(name, content[:size]):
        return None
    return kept.astype(np.int64) if kept.dtype == np.int32 and kept.shape == (num_shards,) else None


def _keep_table(files: CorpusFiles, name: str, counted: NDArray[np.int64]) -> None:
    try:
        files.keep_derived(name, table_bytes(name, counted))
    except OSError as error:
        get_logger("data").debug("row table not kept: %s", error)


def table_bytes(name: str, counted: NDArray[np.integer]) -> bytes:
    """The file of a table: npy of int32 (N,), then its sha256."""
    buffer = io.BytesIO()
    np.save(buffer, counted.astype(np.int32))
    table = buffer.getvalue()
    return table + _digest(name, table)


def _digest(name: str, table: bytes) -> bytes:
    """Ends a kept table: one that is damaged, or was renamed, would give other batches without a word."""
    return hashlib.sha256(name.encode() + table).digest()
