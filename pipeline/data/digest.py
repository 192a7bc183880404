"""Digests of batches: what a step trained on, comparable over ranks, machines and replays.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.data.rows import Rows

DIGEST_BYTES = 32


def row_digests(rows: Rows, input_ids: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """sha256 of every row: row number, number of segments, then document numbers, offsets, segment starts, segment
    lengths, of pairs the document numbers, offsets and starts of the second parts too, input ids and labels, all as
    little-endian int64.

    Args:
        rows: R rows.
        input_ids: what the model sees, (R, S).
        labels: what it predicts, -100 elsewhere, (R, S).

    Returns:
        digests, uint8 (R, 32); zeros for filler rows, which :func:`combine_row_digests` leaves out.
    """
    num_rows = len(rows.row_numbers)
    borders = np.searchsorted(rows.segment_row, np.arange(num_rows + 1)).tolist()
    columns: list[NDArray[np.integer]] = [rows.document, rows.offset, rows.segment_start, rows.segment_length]
    columns += [part for part in (rows.second_document, rows.second_offset, rows.second_start) if part is not None]
    segments = np.stack([column.astype("<i8") for column in columns])  # (4, K) or (7, K)
    cells = np.stack([input_ids, labels], axis=1).astype("<i8")  # (R, 2, S)
    digests = np.zeros((num_rows, DIGEST_BYTES), np.uint8)
    for row in np.flatnonzero(rows.row_numbers >= 0).tolist():
        first, last = borders[row], borders[row + 1]
        digest = hashlib.sha256(np.array([rows.row_numbers[row], last - first], "<i8").tobytes())
        digest.update(segments[:, first:last].tobytes())
        digest.update(cells[row].tobytes())
        digests[row] = np.frombuffer(digest.digest(), np.uint8)
    return digests


def combine_row_digests(row_numbers: NDArray[np.integer], digests: NDArray[np.uint8]) -> str:
    """Hex sha256 of the row digests in the order of their row numbers: the same whichever rank had which row.

    Args:
        row_numbers: distinct but for filler rows, which are below 0 and not counted, (R,).
        digests: uint8 (R, 32).
    """
    order = np.argsort(row_numbers, kind="stable")
    order = order[row_numbers[order] >= 0]
    return hashlib.sha256(np.ascontiguousarray(digests[order]).tobytes()).hexdigest()


def batch_digest(
    rows: Rows, input_ids: NDArray[np.integer], labels: NDArray[np.integer]
) -> tuple[NDArray[np.uint8], str]:
    """Digests of the rows, uint8 (R, 32), and of them together; see :func:`row_digests`."""
    digests = row_digests(rows, input_ids, labels)
    return digests, combine_row_digests(rows.row_numbers, digests)
