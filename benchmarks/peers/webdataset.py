"""webdataset 1.0: tars of small records, read in order, shuffled through a buffer.

Letters: R rows, S sequence length, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from benchmarks.peers.peer import BATCH_ROWS, SEQUENCE_LENGTH, SHUFFLE_BUFFER, Collate, Peer

_RECORDS_A_TAR: Final = 4096


def _write_tars(directory: Path, arrays: Iterator[np.ndarray]) -> None:
    import webdataset

    with webdataset.ShardWriter(str(directory / "%05d.tar"), maxcount=_RECORDS_A_TAR, verbose=0) as writer:
        for number, tokens in enumerate(arrays):
            writer.write({"__key__": f"{number:08d}", "tokens": np.ascontiguousarray(tokens).tobytes()})


def _records(directory: Path) -> Any:
    import webdataset

    tars = sorted(str(path) for path in directory.glob("*.tar"))
    # Raw bytes and frombuffer: `.decode()` with npy members is several times slower.
    return (
        webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False)
        .shuffle(SHUFFLE_BUFFER)
        .map(lambda record: np.frombuffer(record["tokens"], np.uint16))
    )


class WebDatasetRows(Peer):
    """One packed row a record."""

    name = "webdataset, a row a record"
    lacks: ClassVar[str] = "no packing, no exact resume, order depends on ranks and workers"

    def write(self, rows: np.ndarray) -> None:
        _write_tars(self.directory, iter(rows))

    def batches(self, collate: Collate) -> Iterator[Any]:
        return iter(_records(self.directory).batched(BATCH_ROWS, collation_fn=collate, partial=False))


class WebDatasetDocuments(Peer):
    """One document a record, as most tutorials have it; concatenated and cut to rows while loading."""

    name = "webdataset, a document a record"
    lacks: ClassVar[str] = "cuts documents at row ends; no exact resume, order depends on ranks and workers"

    def write(self, rows: np.ndarray) -> None:
        _write_tars(self.directory, _documents(rows))

    def batches(self, collate: Collate) -> Iterator[Any]:
        return iter(
            _records(self.directory).compose(_concatenated).batched(BATCH_ROWS, collation_fn=collate, partial=False)
        )


def _documents(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The segments of the rows, `[CLS] ... [SEP]`, without padding."""
    cls, pad = 101, 0
    for row in rows:
        filled = row[: np.flatnonzero(row != pad)[-1] + 1]
        yield from np.split(filled, np.flatnonzero(filled == cls)[1:])


def _concatenated(documents: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows of S tokens from documents end to end."""
    kept: list[np.ndarray] = []
    num_tokens = 0
    for document in documents:
        kept.append(document)
        num_tokens += len(document)
        if num_tokens >= 8 * SEQUENCE_LENGTH:
            joined = np.concatenate(kept)
            whole = num_tokens // SEQUENCE_LENGTH * SEQUENCE_LENGTH
            yield from joined[:whole].reshape(-1, SEQUENCE_LENGTH)
            kept, num_tokens = [joined[whole:]], num_tokens - whole
