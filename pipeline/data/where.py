"""Where a document is read: the inverse of the stream, from a document to the steps that see it.

Letters: D documents of a shard, P pieces, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.base.errors import UserError
from pipeline.data.phase import Phase
from pipeline.data.pieces import is_kept
from pipeline.data.stream import RowStream


@dataclass(frozen=True)
class Reading:
    """One row that holds tokens of a document."""

    step: int
    """Counted from 0."""

    row: int
    """Run-wide number."""

    epoch: int
    """Of its source."""

    first_token: int
    """First token of the document in the row."""

    num_tokens: int
    """Tokens of the document in the row."""


@dataclass(frozen=True)
class Place:
    """A document of a stream's split."""

    source: int
    shard: int
    document: int
    """Number in its shard."""


def find_document(stream: RowStream, name: str, progress: Callable[[int, int], None] | None = None) -> list[Place]:
    """All documents of that id, one a corpus as a rule; every shard's list of ids is read until all are known.

    Args:
        progress: called with (shards done, shards in all).

    Raises:
        UserError: there is none.
    """
    found = []
    total = sum(len(source.table) for source in stream.sources)
    done = 0
    for source in stream.sources:
        for shard, documents in enumerate(source.table.documents.tolist()):
            names = source.names(shard, np.arange(documents))
            found += [Place(source.number, shard, number) for number, one in enumerate(names) if one == name]
            done += 1
            if progress is not None:
                progress(done, total)
    if not found:
        places = ", ".join(source.files.location for source in stream.sources)
        raise UserError(
            f"No document {name!r} in the {stream.split} split of {places}. Ids look like "
            f"{stream.sources[0].names(0, np.arange(1))[0]!r}; `pretrain batch` prints those of a step."
        )
    return found


def readings(stream: RowStream, place: Place, steps: int) -> list[Reading]:
    """Every row of the first ``steps`` steps that holds tokens of a document, by step."""
    found: list[Reading] = []
    for number, phase in enumerate(stream.phases):
        if phase.first_row >= stream.first_row(steps):
            break
        following = stream.phases[number + 1].first_row if number + 1 < len(stream.phases) else None
        end = stream.first_row(steps) if following is None else min(following, stream.first_row(steps))
        found += _of_phase(stream, phase, place, end)
    return sorted(found, key=lambda reading: reading.row)


def _of_phase(stream: RowStream, phase: Phase, place: Place, end: int) -> Iterator[Reading]:
    """Readings in the rows of a phase before row ``end``."""
    first_step_without = stream.first_steps_without(place.source, place.shard)  # (D,) or None
    windows = phase.windows[place.source]
    order = windows.order
    if phase.last_row is not None:
        end = min(end, phase.last_row)
    given = int(phase.mixture.given_before(end - phase.first_row)[place.source])
    last_epoch = int(order.places(np.array([max(given - 1, 0)])).epoch[0])
    for epoch in range(order.first_epoch, last_epoch + 1):
        shards = windows.epoch(epoch).shards
        found = np.flatnonzero(shards == place.shard)
        if not len(found):
            continue  # an earlier phase has read this shard in this epoch
        at = int(found[0])
        window = at // order.window_shards
        before = shards[window * order.window_shards : at]
        plan, _ = windows.plan_shard(epoch, place.shard)
        planned, first_piece = plan.pieces, plan.first_piece
        own = np.flatnonzero(planned["document"] == place.document)
        packed = np.searchsorted(first_piece, own, side="right") - 1
        num_rows = int(order.rows_per_shard[windows.shards_of(epoch, window)].sum())
        place_of = np.empty(num_rows, np.int64)  # place in the window of every packed row
        place_of[order.window_rows(epoch, window, num_rows)] = np.arange(num_rows)
        position = windows.epoch(epoch).first_row[window] + place_of[int(order.rows_per_shard[before].sum()) + packed]
        rows = phase.mixture.row_of(place.source, order.ordinal_of(epoch, position))
        for piece, in_shard, row in zip(own.tolist(), packed.tolist(), rows.tolist(), strict=True):
            number = row + phase.first_row
            if row < 0 or number >= end:
                continue
            step = stream.stages.step_of_row(number)
            if first_step_without is not None:
                # With the row's other pieces: the other part of a pair may be what is left out.
                first, last = first_piece[in_shard : in_shard + 2].tolist()
                if not is_kept(planned[first:last], first_step_without <= step)[piece - first]:
                    continue
            yield Reading(step, number, epoch, int(planned["offset"][piece]), int(planned["length"][piece]))
