"""From rows and predictions to micro-batches of fixed shape.

Letters: R rows, S sequence length, C most segments a row (padding counted), P predictions, M micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.window import pairs_in_window
from pipeline.data.rows import PER_SEGMENT, Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.pair_layout import add_pairs, find_pairs
from pipeline.objectives.predictions import KEPT, Predictions

_TIMES_MEAN: Final = 2
_SPARE_BOUNDS: Final = 64  # micro-batches of one row vary more


@dataclass(frozen=True)
class Capacity:
    """Most of what a row can hold: it fixes the shapes of every batch of a run."""

    predictions_per_row: int
    segments_per_row: int
    """The padded tail included."""

    mean_segments_per_row: float | None = None
    """What rows of the corpus hold on average, if it is known."""

    window: int = -1
    """How far a token sees to either side in local layers; -1: there are none."""

    def most_bounds(self, num_rows: int) -> int:
        """Entries of ``cu_seqlens`` that no micro-batch of R rows exceeds."""
        return num_rows * self.segments_per_row + 1

    def usual_bounds(self, num_rows: int) -> int:
        """Entries that hardly any micro-batch of R rows exceeds.

        Kernels of flash attention start blocks, and take memory in the backward pass, for each segment of
        ``cu_seqlens``, empty ones too; and rows that could hold 65 segments hold three.
        """
        if self.mean_segments_per_row is None:
            return self.most_bounds(num_rows)
        usual = math.ceil(_TIMES_MEAN * self.mean_segments_per_row * num_rows) + _SPARE_BOUNDS
        return min(usual, self.most_bounds(num_rows))


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
    followed = np.zeros(rows.tokens.shape, np.bool_)
    _mark_followed(rows.segment_row, rows.segment_start, rows.segment_length, followed)
    return followed


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
    most_bounds, usual_bounds = capacity.most_bounds(size), capacity.usual_bounds(size)
    num_predictions = size * capacity.predictions_per_row
    pairs = find_pairs(rows, total) if predictions.with_pairs else None
    most_places = min(num_predictions + (most_bounds - 1 if pairs else 0), max(num_predictions, size * length))
    positions, cu_seqlens, predicting, labels, facts = _room(total, rows.tokens.shape, most_bounds, most_places)
    _lay_out(
        (rows.segment_row, rows.segment_start, rows.segment_length),
        (predictions.indices, predictions.labels, predictions.counts),
        (pairs.firsts, pairs.of_batch) if pairs else (np.empty(0, np.int64), np.zeros(total + 1, np.int64)),
        (num_predictions, usual_bounds, capacity.window),
        *(positions, cu_seqlens, predicting, labels, facts),
    )
    _check_capacity(facts, most_bounds, num_predictions, size * length)
    of_steps, real_of_steps = (facts[:, fact].reshape(-1, num_micro_batches).sum(1).tolist() for fact in (0, 1))
    batches: list[list[Batch]] = [[] for _ in steps]
    for number, (num_predicted, num_real, squares, lengths, bounds, near) in enumerate(facts.tolist()):
        part = slice(number * size, (number + 1) * size)
        num_bounds = usual_bounds if bounds <= usual_bounds else most_bounds
        num_places = min(num_predictions + (num_bounds - 1 if pairs else 0), most_places)
        batches[number // num_micro_batches].append(
            Batch(
                input_ids=torch.from_numpy(predictions.input_ids[part]),
                position_ids=torch.from_numpy(positions[part]),
                cu_seqlens=torch.from_numpy(cu_seqlens[number, :num_bounds]),
                prediction_positions=torch.from_numpy(predicting[number, :num_places]),
                labels=torch.from_numpy(labels[number, :num_places]),
                window_predictions=of_steps[number // num_micro_batches],
                window_real_tokens=real_of_steps[number // num_micro_batches],
                num_predictions=num_predicted,
                num_real_tokens=num_real,
                sum_squared_lengths=squares,
                sum_prediction_lengths=lengths,
                token_pairs_in_window=near,
                row_numbers=torch.from_numpy(rows.row_numbers[part]),
                first_slot_key=int(rows.row_numbers[part.start]),
                max_seqlen=length,
                step=steps[number // num_micro_batches],
            )
        )
    return add_pairs(batches, rows, pairs) if pairs else batches


_Room: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _room(num_batches: int, shape: tuple[int, ...], num_bounds: int, num_places: int) -> _Room:
    """What :func:`_lay_out` fills: positions, bounds, predicting positions and their labels, facts.

    Args:
        num_places: no more than tokens, of pairs too, whose first ones are never predicted.
    """
    return (
        np.empty(shape, np.int64),
        np.empty((num_batches, num_bounds), np.int32),
        np.empty((num_batches, num_places), np.int64),
        np.empty((num_batches, num_places), np.int64),
        np.empty((num_batches, len(_FACTS)), np.int64),
    )


def real_slots(rows: Rows) -> NDArray[np.bool_]:
    """True where a row has a token, (R, S)."""
    num_rows, length = rows.tokens.shape
    changes = np.zeros(num_rows * length + 1, np.int8)
    first = rows.segment_row.astype(np.int64) * length + rows.segment_start
    np.add.at(changes, first, 1)
    np.add.at(changes, first + rows.segment_length, -1)
    return changes[:-1].cumsum(dtype=np.int8).astype(np.bool_).reshape(num_rows, length)


def with_real_slots(batches: Sequence[Sequence[Batch]], rows: Rows) -> list[list[Batch]]:
    """The micro-batches of several steps, with what of their rows is no padding."""
    is_real = torch.from_numpy(real_slots(rows))
    first = 0
    marked: list[list[Batch]] = []
    for of_step in batches:
        marked.append([])
        for batch in of_step:
            marked[-1].append(replace(batch, is_real=is_real[first : first + len(batch.row_numbers)]))
            first += len(batch.row_numbers)
    return marked


def with_digests(batches: Sequence[Batch], row_digests: NDArray[np.uint8]) -> list[Batch]:
    """The micro-batches of a step with the digests of its rows, (R, 32)."""
    parts = np.split(row_digests, len(batches))
    return [replace(batch, row_digests=torch.from_numpy(part)) for batch, part in zip(batches, parts, strict=True)]


_FACTS: Final = (
    "predictions",
    "real tokens",
    "sum of squared lengths",
    "sum of lengths over predictions",
    "bounds",
    "pairs of tokens in the window",
)
"""What is counted of a micro-batch."""


def _check_capacity(facts: NDArray[np.int64], num_bounds: int, num_predictions: int, num_slots: int) -> None:
    """Refuse what was not written whole.

    Raises:
        ValueError: a micro-batch has more segments or predictions than there are places.
    """
    if len(facts) == 0:
        return
    predictions, _, _, _, bounds, _ = facts.max(0).tolist()
    if bounds > num_bounds:
        raise ValueError(f"a micro-batch needs {bounds} places where the capacity is {num_bounds}")
    if predictions > num_predictions or num_predictions > num_slots:
        raise ValueError(f"{predictions} predictions among {num_slots} positions do not fit {num_predictions} places")


@kernel
def _lay_out(
    segments: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]],
    made: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    firsts: tuple[NDArray[np.int64], NDArray[np.int64]],
    sizes: tuple[int, int, int],
    positions: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    predicting: NDArray[np.int64],
    labels: NDArray[np.int64],
    facts: NDArray[np.int64],
) -> None:
    """Fill the last five, micro-batch after micro-batch; what has no place is counted and left out.

    Args:
        firsts: see :class:`.pair_layout.Pairs`.
        sizes: places for predictions, without those of pairs; the usual number of bounds; the window.
    """
    of_row, starts, lengths = segments
    indices, ids, counts = made
    first_slots, of_batch = firsts
    most_predictions, usual_bounds, window = sizes
    num_rows, length = positions.shape
    total = len(facts)
    size = num_rows // total if total else 0
    segment = prediction = 0
    for number in range(total):
        num_bounds = num_predictions = num_real = squares = near = 0
        bounds = cu_seqlens[number]
        for row in range(number * size, (number + 1) * size):
            begin, at = (row - number * size) * length, 0
            while segment < len(of_row) and of_row[segment] == row:
                start, own = int(starts[segment]), int(lengths[segment])
                num_bounds = _add_run(bounds, num_bounds, positions[row], begin, at, start)
                num_bounds = _add_run(bounds, num_bounds, positions[row], begin, start, start + own)
                at = start + own
                num_real += own
                squares += own * own
                near += pairs_in_window(own, window) if window >= 0 else 0
                segment += 1
            num_bounds = _add_run(bounds, num_bounds, positions[row], begin, at, length)
            num_predictions += counts[row]
        bounds[min(num_bounds, len(bounds)) :] = size * length
        facts[number, 0], facts[number, 1], facts[number, 2] = num_predictions, num_real, squares
        facts[number, 4], facts[number, 5] = num_bounds + 1, near
        if num_predictions > most_predictions or num_bounds >= len(bounds):
            facts[number, 3] = 0
            continue
        places = len(predicting[number])
        if places > most_predictions and num_bounds + 1 <= usual_bounds:  # pairs
            places = min(most_predictions + usual_bounds - 1, places)
        chosen = slice(prediction, prediction + num_predictions)
        facts[number, 3] = _place_predictions(
            indices[chosen], ids[chosen], first_slots[of_batch[number] : of_batch[number + 1]],
            number * size * length, size * length, bounds, predicting[number, :places], labels[number, :places],
        )  # fmt: skip
        prediction += num_predictions


@kernel
def _add_run(
    bounds: NDArray[np.int32], num_bounds: int, positions: NDArray[np.int64], begin: int, first: int, end: int
) -> int:
    """A segment or a run of padding in slots ``first .. end - 1`` of a row that begins at slot ``begin``."""
    if end <= first:
        return num_bounds
    if num_bounds < len(bounds):
        bounds[num_bounds] = begin + first
    run = positions[first:end]
    for slot in range(len(run)):
        run[slot] = slot
    return num_bounds + 1


@kernel
def _place_predictions(
    indices: NDArray[np.int64],
    ids: NDArray[np.int64],
    firsts: NDArray[np.int64],
    first_slot: int,
    num_slots: int,
    bounds: NDArray[np.int32],
    predicting: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> int:
    """Positions and labels of a micro-batch in ascending order, with ``firsts`` and as many more as there are places
    among them, which predict nothing.

    Ascending, so that the positions of a segment stand together (see `models/last_block.py`). No position comes twice,
    so the gradient of the selection adds nothing up: no atomics, no order that could vary.

    Returns:
        sum over the predictions and ``firsts`` of the length of their segment.
    """
    capacity = len(predicting)
    if len(indices) + len(firsts) > capacity or capacity > num_slots:
        return 0
    number_at = np.zeros(num_slots, np.int32)  # of the prediction there, counted from 1
    for one in range(len(indices)):
        number_at[indices[one] - first_slot] = one + 1
    for one in range(len(firsts)):
        number_at[firsts[one] - first_slot] = -1
    fillers = capacity - len(indices) - len(firsts)
    place = position = segment = sum_lengths = 0
    while place < capacity:
        one = number_at[position]
        if one != 0:
            while segment + 1 < len(bounds) - 1 and bounds[segment + 1] <= position:
                segment += 1
            sum_lengths += bounds[segment + 1] - bounds[segment]
            predicting[place], labels[place] = position, ids[one - 1] if one > 0 else KEPT
            place += 1
        elif fillers > 0:
            predicting[place], labels[place] = position, KEPT
            place += 1
            fillers -= 1
        position += 1
    return sum_lengths


@kernel
def _mark_followed(
    of_row: NDArray[np.integer],
    starts: NDArray[np.integer],
    lengths: NDArray[np.integer],
    followed: NDArray[np.bool_],
) -> None:
    for segment in range(len(of_row)):
        first = int(starts[segment])
        followed[of_row[segment], first : first + int(lengths[segment]) - 1] = True
