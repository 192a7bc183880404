"""What pairs add to micro-batches: token types, and where the first token of every pair stands.

The head for pairs reads the first token of a segment, so that is computed as the predicted ones are, and has a place
among them (``Batch.prediction_positions``).

Letters: R rows, S sequence length, C pairs, M micro-batches, P places for predictions and first tokens, K places for
pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.data.rows import NO_PAIR, Rows
from pipeline.objectives.batch import Batch


@dataclass(frozen=True)
class Pairs:
    """The pairs of some rows; segments of one part are none."""

    firsts: NDArray[np.int64]
    """Flat indices of their first tokens, ascending, (C,)."""

    labels: NDArray[np.int64]
    """0 where the second part follows the first, else 1, (C,)."""

    of_batch: NDArray[np.int64]
    """First pair of every micro-batch, then C, (M + 1,)."""


def find_pairs(rows: Rows, num_batches: int) -> Pairs:
    """The pairs of rows that are split into M micro-batches, in order.

    Raises:
        ValueError: the rows hold no pairs.
    """
    if rows.pair_label is None:
        raise ValueError("these rows are no sentence pairs")
    is_pair = rows.pair_label != NO_PAIR
    firsts = rows.segment_row[is_pair].astype(np.int64) * rows.tokens.shape[1] + rows.segment_start[is_pair]
    borders = np.arange(num_batches + 1) * (rows.tokens.size // max(num_batches, 1))
    return Pairs(firsts, rows.pair_label[is_pair].astype(np.int64), np.searchsorted(firsts, borders))


def add_pairs(batches: Sequence[Sequence[Batch]], rows: Rows, pairs: Pairs) -> list[list[Batch]]:
    """The micro-batches of several steps with token types, pairs and their counts."""
    assert rows.second_start is not None
    ends = rows.segment_start + rows.segment_length
    num_rows, length = rows.tokens.shape
    types = np.zeros((num_rows, length), np.int64)
    _mark_second_parts(rows.segment_row, rows.second_start, ends, types)
    counts, number, first_slot = np.diff(pairs.of_batch).tolist(), 0, 0
    added: list[list[Batch]] = []
    for of_step in batches:
        window = sum(counts[number : number + len(of_step)])
        added.append([])
        for batch in of_step:
            own = slice(pairs.of_batch[number], pairs.of_batch[number + 1])
            slots = np.empty(len(batch.cu_seqlens) - 1, np.int64)
            labels = np.empty(len(slots), np.int64)
            positions = batch.prediction_positions.numpy()
            _place_pairs(pairs.firsts[own] - first_slot, pairs.labels[own], positions, slots, labels)
            size = len(batch.row_numbers)
            first_row = first_slot // length
            added[-1].append(
                replace(
                    batch,
                    token_type_ids=torch.from_numpy(types[first_row : first_row + size]),
                    pair_slots=torch.from_numpy(slots),
                    pair_labels=torch.from_numpy(labels),
                    window_pairs=window,
                    num_pairs=counts[number],
                )
            )
            number += 1
            first_slot += size * length
    return added


@kernel
def _mark_second_parts(
    of_row: NDArray[np.integer], starts: NDArray[np.integer], ends: NDArray[np.integer], types: NDArray[np.int64]
) -> None:
    for segment in range(len(of_row)):
        types[of_row[segment], int(starts[segment]) : int(ends[segment])] = 1


@kernel
def _place_pairs(
    firsts: NDArray[np.int64],
    pair_labels: NDArray[np.int64],
    positions: NDArray[np.int64],
    slots: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    """Fill the last two, (K,): the places of ``firsts`` (C,) among ``positions`` (P,), ascending, and as many others as
    there is room for, which have the label -100."""
    fillers, pair, filled = len(slots) - len(firsts), 0, 0
    for place in range(len(positions)):
        if filled == len(slots):
            return
        if pair < len(firsts) and positions[place] == firsts[pair]:
            slots[filled], labels[filled] = place, pair_labels[pair]
            pair += 1
            filled += 1
        elif fillers > 0:
            slots[filled], labels[filled] = place, NO_PAIR
            fillers -= 1
            filled += 1
