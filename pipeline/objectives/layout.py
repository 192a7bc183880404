"""From rows and predictions to micro-batches of fixed shape.

Letters: R rows, S sequence length, C most segments a row (padding counted), P predictions, M micro-batches, B bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.rows import PER_SEGMENT, Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.predictions import KEPT, Predictions


@dataclass(frozen=True)
class Capacity:
    """Most of what a row can hold: it fixes the shapes of every batch of a run."""

    predictions_per_row: int
    segments_per_row: int
    """The padded tail included."""


def as_one_segment(rows: Rows) -> Rows:
    """Rows whose segments are one, from the first one's start to the last one's end; padding stays apart.

    What is said of each segment is then said of the row's first.
    """
    first = np.flatnonzero(np.diff(rows.segment_row, prepend=-1))
    last = np.append(first[1:], len(rows.segment_row))[: len(first)] - 1
    columns = {name: getattr(rows, name) for name in (*PER_SEGMENT, "segment_row")}
    joined: dict[str, Any] = {name: None if column is None else column[first] for name, column in columns.items()}
    joined["segment_length"] = rows.segment_start[last] + rows.segment_length[last] - rows.segment_start[first]
    return replace(rows, **joined)


def has_next(rows: Rows) -> NDArray[np.bool_]:
    """True at every token that another token of its segment follows, (R, S)."""
    starts, ends = _flat_segments(rows)
    edges = np.column_stack([starts, ends]).ravel()  # padding, segment, padding, ..., each possibly empty
    sizes = np.diff(edges, prepend=0, append=rows.tokens.size)
    followed = np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)
    followed[ends - 1] = False
    return followed.reshape(rows.tokens.shape)


def make_batches(
    rows: Rows,
    predictions: Predictions,
    capacity: Capacity,
    num_micro_batches: int,
    steps: Sequence[int],
) -> list[list[Batch]]:
    """Split the R rows of several steps, in order, into M equal micro-batches a step.

    Filler rows (numbered below 0) are padding and nothing else.

    Raises:
        ValueError: M steps do not divide R, or a row holds more than ``capacity``.
    """
    num_rows, length = rows.tokens.shape
    total = num_micro_batches * len(steps)
    if num_rows % total:
        raise ValueError(f"{num_rows} rows cannot be split into {total} equal micro-batches")
    size = num_rows // total
    bounds = _bounds(rows)  # B
    positions = np.repeat(bounds[:-1], np.diff(bounds))  # R*S
    np.subtract(_slots(rows.tokens.size), positions, out=positions)
    begins = np.arange(total + 1) * size
    first_bound = np.searchsorted(bounds, begins * length).tolist()
    first_segment = np.searchsorted(rows.segment_row, begins).tolist()
    first_prediction = np.concatenate([[0], np.cumsum(predictions.counts)])[begins].tolist()
    lengths = rows.segment_length.astype(np.int64)
    of_steps = np.diff(first_prediction[::num_micro_batches])
    batches: list[list[Batch]] = [[] for _ in steps]
    for number, begin in enumerate((begins[:-1] * length).tolist()):
        part = slice(number * size, (number + 1) * size)
        cut = bounds[first_bound[number] : first_bound[number + 1] + 1] - begin
        inside = slice(first_prediction[number], first_prediction[number + 1])
        own = lengths[first_segment[number] : first_segment[number + 1]]
        at = number // num_micro_batches
        batches[at].append(
            Batch(
                input_ids=_tensor(predictions.input_ids[part]),
                position_ids=_tensor(positions[begin : begin + size * length].reshape(size, length)),
                cu_seqlens=_padded(cut.astype(np.int32), size * capacity.segments_per_row + 1, size * length),
                prediction_positions=_filled_up(
                    predictions.indices[inside] - begin, size * capacity.predictions_per_row, size * length
                ),
                labels=_padded(predictions.labels[inside], size * capacity.predictions_per_row, KEPT),
                window_predictions=_scalar(int(of_steps[at])),
                num_predictions=_scalar(inside.stop - inside.start),
                num_real_tokens=_scalar(int(own.sum())),
                sum_squared_lengths=_scalar(int(own @ own)),
                row_numbers=_tensor(rows.row_numbers[part]),
                first_slot_key=_scalar(int(rows.row_numbers[part.start])),
                max_seqlen=length,
                step=steps[at],
            )
        )
    return batches


def with_digests(batches: Sequence[Batch], row_digests: NDArray[np.uint8]) -> list[Batch]:
    """The micro-batches of a step with the digests of its rows, (R, 32)."""
    parts = np.split(row_digests, len(batches))
    return [replace(batch, row_digests=_tensor(part)) for batch, part in zip(batches, parts, strict=True)]


def _flat_segments(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First slot of every segment and the slot after its last, in R * S flattened slots."""
    starts = rows.segment_row.astype(np.int64) * rows.tokens.shape[1] + rows.segment_start
    return starts, starts + rows.segment_length


def _bounds(rows: Rows) -> NDArray[np.int64]:
    """Where a segment, a run of padding or a row begins in the R * S flattened slots, and R * S, ascending, (B,)."""
    is_bound = np.zeros(rows.tokens.size + 1, np.bool_)
    is_bound[:: rows.tokens.shape[1]] = True
    for slots in _flat_segments(rows):
        is_bound[slots] = True
    return np.flatnonzero(is_bound)


@cache
def _slots(num_slots: int) -> NDArray[np.int64]:
    """0 .. ``num_slots`` - 1, the same for all batches of a run."""
    slots = np.arange(num_slots)
    slots.flags.writeable = False
    return slots


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
    num_missing = size - len(positions)
    if num_missing < 0 or size > num_positions:
        raise ValueError(f"{len(positions)} predictions among {num_positions} positions do not fit {size} places")
    # Among the first `size` positions enough are free: the others are at most len(positions).
    is_free = np.ones(size, np.bool_)
    is_free[positions[positions < size]] = False
    free = np.flatnonzero(is_free)[:num_missing]
    return torch.from_numpy(np.concatenate([positions, free]))


def _scalar(value: int) -> Tensor:
    """int64; several times faster than ``torch.tensor``."""
    return torch.from_numpy(np.array(value, np.int64))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
