"""From rows and predictions to micro-batches of fixed shape.

Letters: R rows, S sequence length, C most segments a row (padding counted), P predictions, M micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.rows import Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.masking import KEPT


@dataclass(frozen=True, eq=False)
class Predictions:
    """What an objective made of R rows."""

    input_ids: NDArray[np.int64]
    """Ids that the model reads, (R, S)."""

    indices: NDArray[np.int64]
    """Flat indices of the predicting positions, ascending, (P,)."""

    labels: NDArray[np.int64]
    """Ids to predict there, (P,)."""

    def dense_labels(self) -> NDArray[np.int64]:
        """Labels at their positions and -100 elsewhere, (R, S)."""
        labels = np.full(self.input_ids.shape, KEPT, np.int64)
        labels.ravel()[self.indices] = self.labels
        return labels


@dataclass(frozen=True)
class Capacity:
    """Most of what a row can hold: it fixes the shapes of every batch of a run."""

    predictions_per_row: int
    segments_per_row: int
    """The padded tail included."""


def is_real(rows: Rows) -> NDArray[np.bool_]:
    """True at the tokens of segments, False at padding, (R, S)."""
    starts, ends = _flat_segments(rows)
    change = np.zeros(rows.tokens.size + 1, np.int8)
    change[starts] += 1
    change[ends] -= 1  # may be the start of the next segment, never the end of another
    return np.cumsum(change[:-1], dtype=np.int8).astype(np.bool_).reshape(rows.tokens.shape)


def has_next(rows: Rows) -> NDArray[np.bool_]:
    """True at every token that another token of its segment follows, (R, S)."""
    _, ends = _flat_segments(rows)
    followed = is_real(rows)
    followed.ravel()[ends - 1] = False
    return followed


def make_batches(
    rows: Rows,
    predictions: Predictions,
    capacity: Capacity,
    num_micro_batches: int,
    step: int,
    row_digests: NDArray[np.uint8] | None,
) -> list[Batch]:
    """Split R rows, in order, into M equal micro-batches.

    Raises:
        ValueError: M does not divide R, or a row holds more than ``capacity``.
    """
    num_rows, length = rows.tokens.shape
    if num_rows % num_micro_batches:
        raise ValueError(f"{num_rows} rows cannot be split into {num_micro_batches} equal micro-batches")
    size = num_rows // num_micro_batches
    bounds = _segment_bounds(rows)  # flat, R * S included
    positions = np.arange(rows.tokens.size) - np.repeat(bounds[:-1], np.diff(bounds))  # R * S
    window_predictions = torch.tensor(len(predictions.indices))
    batches = []
    for first in range(0, num_rows, size):
        begin, end = first * length, (first + size) * length
        inside = slice(*np.searchsorted(predictions.indices, (begin, end)).tolist())
        cut = bounds[np.searchsorted(bounds, begin) : np.searchsorted(bounds, end) + 1] - begin
        own = (rows.segment_row >= first) & (rows.segment_row < first + size)
        lengths = rows.segment_length[own].astype(np.int64)
        part = slice(first, first + size)
        batches.append(
            Batch(
                input_ids=_tensor(predictions.input_ids[part]),
                position_ids=_tensor(positions[begin:end].reshape(size, length)),
                cu_seqlens=_padded(cut.astype(np.int32), size * capacity.segments_per_row + 1, size * length),
                prediction_positions=_filled_up(
                    predictions.indices[inside] - begin, size * capacity.predictions_per_row, size * length
                ),
                labels=_padded(predictions.labels[inside], size * capacity.predictions_per_row, KEPT),
                window_predictions=window_predictions,
                num_predictions=torch.tensor(inside.stop - inside.start),
                num_real_tokens=torch.tensor(int(lengths.sum())),
                sum_squared_lengths=torch.tensor(int((lengths**2).sum())),
                row_numbers=_tensor(rows.row_numbers[part]),
                first_slot_key=torch.tensor(int(rows.row_numbers[first])),
                max_seqlen=length,
                step=step,
                row_digests=None if row_digests is None else _tensor(row_digests[part]),
            )
        )
    return batches


def _flat_segments(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First slot of every segment and the slot after its last, in R * S flattened slots."""
    starts = rows.segment_row.astype(np.int64) * rows.tokens.shape[1] + rows.segment_start
    return starts, starts + rows.segment_length


def _segment_bounds(rows: Rows) -> NDArray[np.int64]:
    """Where a segment, a run of padding or a row begins, and R * S, ascending."""
    is_bound = np.zeros(rows.tokens.size + 1, np.bool_)
    is_bound[:: rows.tokens.shape[1]] = True
    for slots in _flat_segments(rows):
        is_bound[slots] = True
    return np.flatnonzero(is_bound)


def _padded(values: NDArray[np.integer], size: int, fill: int) -> Tensor:
    if len(values) > size:
        raise ValueError(f"a micro-batch needs {len(values)} places where the capacity is {size}")
    padded = np.full(size, fill, values.dtype)
    padded[: len(values)] = values
    return torch.from_numpy(padded)


def _filled_up(positions: NDArray[np.int64], size: int, num_positions: int) -> Tensor:
    """Positions (P,) and after them others that predict nothing, each once.

    No position comes twice, so the gradient of the selection adds nothing up: no atomics, no order that could vary.
    """
    is_free = np.ones(num_positions, np.bool_)
    is_free[positions] = False
    filled = np.concatenate([positions, np.flatnonzero(is_free)])[:size]
    if len(positions) > size or len(filled) < size:
        raise ValueError(f"{len(positions)} predictions among {num_positions} positions do not fit {size} places")
    return torch.from_numpy(filled)


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
