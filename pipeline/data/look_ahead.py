"""Planning before it is needed: the windows and shards of the steps ahead, a little at a time.

A lane enters a new part of a window every thousand steps or so, and at an epoch's edge all lanes do so at once.
Planning one takes a millisecond a shard, so each step plans only as many as it takes to be ready in time. Caches of
remote corpora are told what to fetch: the indexes that planning reads, then the tars.

Nothing here changes a row; a jump to another step only begins anew.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.data.phase import Phase, PhasePlaces
from pipeline.data.windows import PartName
from pipeline.shards.files import Wanted
from pipeline.shards.layout import shard_name

if TYPE_CHECKING:
    from pipeline.data.stream import RowStream

STEPS_AHEAD: Final = 512
_STEPS_SEEN_A_STEP: Final = 4
"""How fast the horizon moves away after a start: looking at a step costs a fraction of planning it."""

_STRIDE: Final = 8
"""Every n-th step ahead is looked at: a lane stays in a window for many steps, and one that is missed is only planned
when it is entered."""

_URGENT_STEPS: Final = 2

_EXPIRY_STEPS: Final = 16
"""A window that no step has asked for so long has been left."""

_Wanted = tuple[int, int, PartName]
"""(number of the phase, source, part of a window)."""


class LookAhead:
    """What the steps after the last one need, for one rank."""

    def __init__(self, stream: RowStream) -> None:
        self.stream = stream
        self._next_step: int | None = None
        self._seen_until = 0
        self._place = (0, 1)
        self._wanted: OrderedDict[_Wanted, int] = OrderedDict()
        """Not planned yet, with the first step that may need it."""
        self._to_fetch: OrderedDict[_Wanted, int] = OrderedDict()
        """Of remote sources: not read yet, planned or not."""
        self._has_remote = any(source.files.is_remote for source in stream.sources)
        self._expired_at = 0

    def after(self, steps: Sequence[int], rank: int, world_size: int) -> None:
        """Called with the steps that have just been planned: look further, plan a little."""
        stream = self.stream
        # One of several loader processes sees every n-th group of steps.
        near = self._next_step is not None and 0 <= steps[0] - self._next_step <= STEPS_AHEAD // 2
        follows = near and self._place == (rank, world_size)
        self._next_step, self._place = steps[-1] + 1, (rank, world_size)
        if not follows:
            self._begin_anew()
            return
        horizon = self._next_step + STEPS_AHEAD
        self._see(min(horizon, max(self._seen_until, self._next_step) + _STEPS_SEEN_A_STEP * len(steps)))
        self._plan(len(steps))
        if self._next_step >= self._expired_at + _EXPIRY_STEPS:
            self._expired_at = self._next_step
            for phase in stream.phases:
                for windows in phase.windows:
                    windows.expire(self._next_step - _EXPIRY_STEPS)

    def _begin_anew(self) -> None:
        for phase in self.stream.phases:
            for windows in phase.windows:
                windows.forget_steps()
        self._wanted.clear()
        self._to_fetch.clear()
        self._seen_until = self._next_step or 0

    def _see(self, until: int) -> None:
        """Note the windows of the steps up to ``until`` that are not planned yet."""
        stream = self.stream
        added = False
        begin = max(self._seen_until, self._next_step or 0)
        for step in range(begin + -begin % _STRIDE, until, _STRIDE):
            phase = stream.phase_of(step)
            if phase.last_row is not None and stream.first_row(step + 1) > phase.last_row:
                break  # the data end here; whoever asks for that step is told
            _, found = stream.slots([step], *self._place)
            for wanted in _unplanned(phase, found):
                added |= wanted not in self._wanted
                self._wanted.setdefault(wanted, step - _STRIDE + 1)
                if stream.sources[wanted[1]].files.is_remote:
                    self._to_fetch.setdefault(wanted, step - _STRIDE + 1)
        self._seen_until = until
        if added:
            self._fetch()

    def _plan(self, num_steps: int) -> None:
        """Plan what is wanted at the pace of what is most pressing, and whatever the very next steps need."""
        assert self._next_step is not None
        units = math.ceil(self._pace() * num_steps)
        while self._wanted:
            (phase, source, name), step = next(iter(self._wanted.items()))
            windows = self.stream.phases[phase].windows[source]
            if (units <= 0 or windows.is_full) and step > self._next_step + _URGENT_STEPS:
                return
            units -= 1
            if windows.advance(name, step):
                self._wanted.popitem(last=False)

    def _pace(self) -> float:
        """Shards to plan a step, so that everything wanted is planned when it is needed."""
        assert self._next_step is not None
        pace, num_shards = 0.0, 0
        for (phase, source, _), step in self._wanted.items():
            num_shards += self.stream.phases[phase].windows[source].order.window_shards
            pace = max(pace, num_shards / max(step - self._next_step, 1))
        return pace

    def fetch_indexes(self, phase: Phase, found: PhasePlaces) -> None:
        """Let remote sources fetch what planning these rows will read, all at once."""
        if self._has_remote and (windows := _unplanned(phase, found)):
            self._fetch(windows=[one for one in windows if self.stream.sources[one[1]].files.is_remote])

    def fetch_now(self, shards: Sequence[tuple[int, int]]) -> None:
        """Let remote sources fetch the (source, shard) that are about to be opened, all at once, before the others."""
        if not self._has_remote:
            return
        missing = [
            (source, shard)
            for source, shard in dict.fromkeys(shards)
            if self.stream.sources[source].files.is_remote and shard not in self.stream.sources[source].shard
        ]
        if missing:
            self._fetch(shards=missing)

    def _fetch(self, windows: Sequence[_Wanted] = (), shards: Sequence[tuple[int, int]] = ()) -> None:
        """Tell the caches of remote sources what comes next: windows that are about to be planned and (source, shard)
        that are about to be opened, then what the steps ahead read."""
        while self._to_fetch and next(iter(self._to_fetch.values())) + _STRIDE <= (self._next_step or 0):
            self._to_fetch.popitem(last=False)
        planned_now, ahead = self._shards_of(windows), self._shards_of(self._to_fetch)
        wanted: dict[int, dict[Wanted, None]] = {}
        for ending, of_source in (("idx", planned_now), ("tar", shards), ("idx", ahead), ("tar", planned_now + ahead)):
            for number, shard in of_source:
                source = self.stream.sources[number]
                name = f"{shard_name(source.split, shard)}.{ending}"
                file: Wanted = (name, int(source.table.bytes[shard]), source.table.sha256_of(shard))
                if ending == "idx":
                    file = (name, None, source.table.index_sha256_of(shard))
                wanted.setdefault(number, {})[file] = None
        for number, files in wanted.items():
            self.stream.sources[number].files.fetch_ahead(list(files))

    def _shards_of(self, windows: Iterable[_Wanted]) -> list[tuple[int, int]]:
        """(source, shard) of windows, without those that are open."""
        return [
            (source, shard)
            for phase, source, name in windows
            for shard in self.stream.phases[phase].windows[source].shards_of(*name[:2])
            if shard not in self.stream.sources[source].shard
        ]


def _unplanned(phase: Phase, found: PhasePlaces) -> list[_Wanted]:
    """The parts of windows that rows at some places are in and that are not planned, each once, in order."""
    wanted: list[_Wanted] = []
    for source, windows in enumerate(phase.windows):
        rows = slice(None) if len(phase.windows) == 1 else np.flatnonzero(found.source == source)
        epoch = found.places.epoch[rows]
        window, _, part = windows.names_of(epoch, found.places.position[rows])
        wanted += [(phase.number, source, name) for name in windows.missing(epoch, window, part)[0]]
    return wanted
