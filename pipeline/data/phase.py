"""A phase: consecutive stages of one sequence length, and how its sources give its rows.

Letters: R rows, G rows of a step, C sources, L lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.stages import Stage
from pipeline.data.mixture import Mixture
from pipeline.data.order import Places, SourceOrder, check_window, num_lanes
from pipeline.data.packing import Packing
from pipeline.data.row_tables import rows_per_shard
from pipeline.data.rows import RowFormat
from pipeline.data.source import OpenSource
from pipeline.data.windows import Windows


@dataclass(frozen=True, eq=False)
class PhasePlaces:
    """Where rows stand."""

    source: NDArray[np.int64]
    """Source of every row, (R,)."""

    places: Places
    """In its source, (R,) each."""

    lanes: NDArray[np.int64]
    """L of every row's source, (R,)."""

    def taken(self, rows: NDArray[np.int64]) -> Self:
        """These rows of them, in this order."""
        at = self.places
        return type(self)(self.source[rows], Places(at.epoch[rows], at.lane[rows], at.position[rows]), self.lanes[rows])


class Phase:
    """Rows of the stages from ``first_row`` on.

    Args:
        number: of the phase in the run, from 0.
        before: the phase before this one; where it stops, its sources' epochs go on here.

    Raises:
        UserError: a damaged index, a window too large, a source that would never be read, or none left.
    """

    def __init__(
        self,
        number: int,
        sources: Sequence[OpenSource],
        stages: Sequence[Stage],
        *,
        packing: Packing,
        row_format: RowFormat,
        open_shards: int,
        exponent: float,
        seed: int,
        before: Phase | None,
    ) -> None:
        self.number = number
        self.stages = tuple(stages)
        self.first_row = stages[0].first_row
        self.row_format = row_format
        self.sources = sources
        tables = [rows_per_shard(source, packing, row_format) for source in sources]
        weights = np.array([source.weight for source in sources])
        powers = (weights / weights.max()) ** exponent
        self.token_shares = powers / powers.sum()
        # A row of a source that fills its rows badly has fewer tokens, so the source gets more rows.
        tokens_a_row = np.array(
            [source.num_tokens / int(table.sum()) for source, table in zip(sources, tables, strict=True)]
        )
        row_shares = self.token_shares / tokens_a_row
        # Rounded: the last bit of a power may differ between machines, and the stream must not.
        self.row_shares = np.round(row_shares / row_shares.sum(), 12)
        _check_shares(sources, self.row_shares)
        rests = before.rests(self.first_row) if before is not None else [(0, None)] * len(sources)
        self.windows: list[Windows] = []
        for source, table, share, (epoch, opening) in zip(sources, tables, self.row_shares, rests, strict=True):
            lanes, window_shards = _shape(float(share), stages[0].lane_rows, open_shards)
            window_shards = min(window_shards, len(table))
            check_window(table, window_shards, open_shards)
            order = SourceOrder(seed, source.number, table, lanes, window_shards, epoch, opening)
            self.windows.append(Windows(source, packing, row_format, order))
        self._lanes = np.array([windows.order.lanes for windows in self.windows], np.int64)
        limits = [
            None if source.epochs is None else windows.order.rows_of_epochs(source.epochs)
            for source, windows in zip(sources, self.windows, strict=True)
        ]
        self.mixture = Mixture(self.row_shares.tolist(), limits)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch of every source, together."""
        return sum(windows.order.num_rows for windows in self.windows)

    @property
    def last_row(self) -> int | None:
        """Row after the last there is, where all sources drop out; None: there is none."""
        return None if self.mixture.num_rows is None else self.first_row + self.mixture.num_rows

    def rests(self, row: int) -> list[tuple[int, NDArray[np.int64] | None]]:
        """First epoch and its shards, of every source, for a phase that begins at ``row``."""
        if self.mixture.num_rows is not None and row - self.first_row >= self.mixture.num_rows:
            raise_end(self.first_row + self.mixture.num_rows, row)
        given = self.mixture.given_before(row - self.first_row).tolist()
        return [windows.order.rest_after(count) for windows, count in zip(self.windows, given, strict=True)]

    def places(self, rows: NDArray[np.int64]) -> PhasePlaces:
        """Sources and places of rows by their run-wide numbers, int64 (R,).

        Raises:
            UserError: the last source has dropped out before.
        """
        if self.last_row is not None and len(rows) and int(rows.max()) >= self.last_row:
            raise_end(self.last_row, int(rows.max()))
        source, ordinal = self.mixture.of_rows(rows - self.first_row)
        if len(self.windows) == 1:
            places = self.windows[0].order.places(ordinal)
        else:
            places = Places(*(np.empty_like(rows) for _ in range(3)))
            for number in np.unique(source).tolist():
                here = source == number
                found = self.windows[number].order.places(ordinal[here])
                places.epoch[here], places.lane[here], places.position[here] = found.epoch, found.lane, found.position
        return PhasePlaces(source, places, self._lanes[source])


def raise_end(last_row: int, row: int) -> None:
    """Raise the error of a mixture that has come to its end."""
    raise UserError(
        f"The data end at row {last_row}, before row {row}: every source of data.mixture has dropped out. Lower "
        "train.steps or the length of a stage, or raise `epochs` of a source or leave it out."
    )


def _check_shares(sources: Sequence[OpenSource], shares: NDArray[np.float64]) -> None:
    for source, share in zip(sources, shares.tolist(), strict=True):
        if not share:
            raise UserError(
                f"data.mixture: {source.files.location} would give less than one row in 10^12. Raise its weight, bring "
                "data.mixture_exponent nearer to 0, or leave the source out."
            )


def _shape(share: float, rows_per_step: int, open_shards: int) -> tuple[int, int]:
    """Lanes and shards a window of a source; sources share the open shards as they share the rows."""
    if share == 1.0:
        lanes = num_lanes(rows_per_step, open_shards)
        return lanes, max(1, open_shards // lanes)
    own = max(1, round(open_shards * share))
    lanes = num_lanes(share * rows_per_step, own)
    return lanes, max(1, own // lanes)
