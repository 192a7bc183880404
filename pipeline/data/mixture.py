"""Which source a row comes from: a pure function of its number, with every source's share right at any moment.

A period of 65,536 rows has ``q_c`` places for source ``c``, evenly spaced: all (j, c) sorted by
``((2j + 1) P) // q_c``, ties by c. So any stretch of rows is within a row or two of its shares (a low-discrepancy
sequence), and the ordinal of a row in its source is closed: ``m = (n div P) q_c + rank[n mod P]``. Where a source drops
out, an era ends and the next one begins with a table of the sources that are left.

Letters: R rows, C sources, P places of a period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PERIOD: Final = 1 << 16
"""P."""


def quotas(shares: Sequence[float]) -> NDArray[np.int64]:
    """Places of every source in a period, (C,): shares in largest remainders, at least one for a share above 0."""
    share = np.array(shares, np.float64) / sum(shares)
    exact = share * PERIOD
    places = np.floor(exact).astype(np.int64)
    places[(share > 0) & (places == 0)] = 1
    # Stable, so that equal remainders go to the first sources on every machine; one that was lifted has its due.
    by_remainder = np.argsort(places - exact, kind="stable")
    by_remainder = by_remainder[share[by_remainder] > 0]
    missing = PERIOD - int(places.sum())
    if missing > 0:
        places[by_remainder[:missing]] += 1
    while missing < 0:  # many tiny sources were lifted to one place: the largest gives it
        places[int(places.argmax())] -= 1
        missing += 1
    return places


@dataclass(frozen=True, eq=False)
class _Era:
    """Rows that one set of sources shares."""

    first: int
    """First row of the era."""

    quota: NDArray[np.int64]
    """q_c; 0 for a source that has dropped out, (C,)."""

    source_at: NDArray[np.int64]
    """Source of every place, (P,)."""

    rank_at: NDArray[np.int64]
    """Places of the same source before every place, (P,)."""

    places: list[NDArray[np.int64]]
    """Places of every source, ascending, (q_c,) each."""

    given: NDArray[np.int64]
    """Rows every source gave before the era, (C,)."""

    @classmethod
    def of(cls, first: int, shares: Sequence[float], given: NDArray[np.int64]) -> _Era:
        quota = quotas(shares)
        source = np.repeat(np.arange(len(quota)), quota)
        turn = np.concatenate([np.arange(count) for count in quota.tolist()])
        source_at = source[np.lexsort((source, ((2 * turn + 1) * PERIOD) // quota[source]))]
        places = [np.flatnonzero(source_at == number) for number in range(len(quota))]
        rank_at = np.empty(PERIOD, np.int64)
        for own in places:
            rank_at[own] = np.arange(len(own))
        return cls(first, quota, source_at, rank_at, places, given)

    def row_of(self, source: int, ordinal: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row, counted from the era's first, that is row ``ordinal`` of the source in the era."""
        period, turn = np.divmod(ordinal, self.quota[source])
        return period * PERIOD + self.places[source][turn]

    def given_before(self, row: int) -> NDArray[np.int64]:
        """Rows that every source gave before row ``row`` of the era, (C,)."""
        period, place = divmod(row, PERIOD)
        in_last = np.array([np.searchsorted(own, place) for own in self.places])
        return self.given + period * self.quota + in_last


class Mixture:
    """Sources by row.

    Args:
        shares: of the rows, above 0, (C,).
        limits: rows after which a source drops out, None where it repeats for ever, (C,).
    """

    def __init__(self, shares: Sequence[float], limits: Sequence[int | None]) -> None:
        self.num_sources = len(shares)
        self.num_rows: int | None = None
        """Rows until the last source has dropped out; None: for ever."""
        self._eras: list[_Era] = []
        left = [share if limit is None or limit > 0 else 0.0 for share, limit in zip(shares, limits, strict=True)]
        first, given = 0, np.zeros(len(shares), np.int64)
        while any(left):
            era = _Era.of(first, left, given)
            self._eras.append(era)
            ends = {
                source: int(era.row_of(source, np.array([limit - int(given[source]) - 1]))[0]) + 1
                for source, limit in enumerate(limits)
                if left[source] and limit is not None
            }
            if not ends:
                break
            end = min(ends.values())
            given = era.given_before(end)
            first += end
            left = [0.0 if ends.get(source) == end else share for source, share in enumerate(left)]
        if not any(left):
            self.num_rows = first
        self._firsts = np.array([era.first for era in self._eras], np.int64)

    def of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source and ordinal in it of every row, (R,) each; rows must be below ``num_rows``."""
        if self.num_sources == 1:
            return np.zeros_like(rows), rows
        source, ordinal = np.empty_like(rows), np.empty_like(rows)
        era_of = np.searchsorted(self._firsts, rows, side="right") - 1
        for number in np.unique(era_of).tolist():
            era, here = self._eras[number], era_of == number
            period, place = np.divmod(rows[here] - era.first, PERIOD)
            own = era.source_at[place]
            source[here] = own
            ordinal[here] = era.given[own] + period * era.quota[own] + era.rank_at[place]
        return source, ordinal

    def row_of(self, source: int, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that are these rows of a source: the inverse of :meth:`of_rows`; -1 past the source's end, (R,)."""
        rows = np.full(len(ordinals), -1, np.int64)
        for number, era in enumerate(self._eras):
            if not era.quota[source]:
                continue
            after = self._eras[number + 1].given[source] if number + 1 < len(self._eras) else None
            inside = ordinals >= era.given[source]
            if after is not None:
                inside &= ordinals < after
            rows[inside] = era.first + era.row_of(source, ordinals[inside] - era.given[source])
        if self.num_rows is not None:
            rows[rows >= self.num_rows] = -1
        return rows

    def given_before(self, row: int) -> NDArray[np.int64]:
        """Rows that every source gives before row ``row``, (C,)."""
        era = self._eras[int(np.searchsorted(self._firsts, row, side="right")) - 1]
        return era.given_before(row - era.first)
