"""The packings by name, and the rows of every shard under one: a closed form, or a table derived from the indexes.

Letters: N shards of a split.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import MAX_PERMUTATION
from pipeline.base.logs import get_logger
from pipeline.data import best_fit, concatenate
from pipeline.data.pieces import ShardLengths, ShardPlan
from pipeline.data.rows import RowFormat
from pipeline.shards.files import CorpusFiles
from pipeline.shards.layout import shard_name
from pipeline.shards.manifest import Manifest, ShardTable
from pipeline.shards.reader import read_index


@dataclass(frozen=True)
class Packing:
    """A way to turn the documents of a shard into rows. The number of rows depends on lengths alone, never on keys."""

    name: str
    """As in ``data.packing``."""

    version: int
    """Raised when the rows change; part of the settings fingerprint and of a table's file name."""

    count_rows: Callable[[ShardLengths, RowFormat], int]
    """R_s from the shard's lengths."""

    plan: Callable[[ShardLengths, RowFormat, int, int], ShardPlan]
    """Rows from (lengths, format, documents key, cuts key)."""

    max_segments: Callable[[RowFormat], int]
    """Most segments a row."""

    closed_form: Callable[[NDArray[np.int64], NDArray[np.int64], RowFormat], NDArray[np.int64]] | None
    """R_s from the manifest's (documents, tokens), where that is possible."""


PACKINGS: Final = {
    "best_fit": Packing("best_fit", best_fit.VERSION, best_fit.count_rows, best_fit.plan, best_fit.max_segments, None),
    "concatenate": Packing(
        "concatenate",
        concatenate.VERSION,
        concatenate.count_rows,
        concatenate.plan,
        concatenate.max_segments,
        concatenate.num_rows,
    ),
}


def find_packing(name: str) -> Packing:
    """The packing of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PACKINGS:
        raise UserError(f"data.packing is {name!r}; it must be one of {', '.join(PACKINGS)}.")
    return PACKINGS[name]


def max_segments_per_row(row_format: RowFormat, packing: str) -> int:
    """A bound on the segments of any row, for static shapes; the padded tail of a row is not counted.

    best_fit: ``max(1, S // 8)``. concatenate: ``S // (1 + overhead)`` for the BERT kind, ``(S + overhead) // (1 +
    overhead)`` for the GPT kind, reached by documents of one token.
    """
    return find_packing(packing).max_segments(row_format)


def rows_per_shard(
    files: CorpusFiles, manifest: Manifest, split: str, packing: Packing, row_format: RowFormat
) -> NDArray[np.int64]:
    """R_s of every shard of a split, int64 (N,).

    A counted table is kept under ``rows/``, named by packing, version, S, overhead, split and the shards it was made
    from; where the corpus is not writable it is counted at every opening.

    Raises:
        UserError: a damaged index, or a shard with more documents than a keyed permutation can order.
    """
    table = manifest.splits[split]
    if len(table) and int(table.documents.max()) > MAX_PERMUTATION:
        largest = shard_name(split, int(table.documents.argmax()))
        raise UserError(
            f"Shard {largest} has {table.documents.max()} documents; at most {MAX_PERMUTATION} can be shuffled. "
            "Build the corpus with a smaller shards.documents."
        )
    if packing.closed_form is not None:
        return packing.closed_form(table.documents, table.tokens, row_format)
    name = table_name(split, table, packing, row_format)
    kept = _read_table(files, name, len(table))
    if kept is not None:
        return kept
    counted = np.array(
        [
            packing.count_rows(ShardLengths(read_index(files, split, number, manifest).lengths), row_format)
            for number in range(len(table))
        ],
        np.int64,
    )
    _keep_table(files, name, counted)
    return counted


def table_name(split: str, table: ShardTable, packing: Packing, row_format: RowFormat) -> str:
    """``rows/best_fit-1-512-2.train-<12 hex of the shards' digests>.npy``."""
    shards = hashlib.sha256(table.sha256.encode()).hexdigest()[:12]
    settings = f"{packing.name}-{packing.version}-{row_format.sequence_length}-{row_format.overhead}"
    return f"rows/{settings}.{split}-{shards}.npy"


def _read_table(files: CorpusFiles, name: str, num_shards: int) -> NDArray[np.int64] | None:
    """A kept table, or None if there is none that fits: it can always be counted again."""
    try:
        kept = np.load(io.BytesIO(files.read(name)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept.astype(np.int64) if kept.dtype == np.int32 and kept.shape == (num_shards,) else None


def _keep_table(files: CorpusFiles, name: str, counted: NDArray[np.int64]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, counted.astype(np.int32))
    try:
        files.keep_derived(name, buffer.getvalue())
    except OSError as error:
        get_logger("data").debug("row table not kept: %s", error)
