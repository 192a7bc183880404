"""Signals: a handler only notes that it was called; the ranks agree at the step boundary, save there, and stop."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Catches SIGTERM and SIGUSR1 while the run is going; the previous handlers come back with :meth:`restore`.

    Lightning installs a handler of its own that starts a collective inside it; :meth:`install` is called after that and
    replaces it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def install(self) -> None:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self) -> bool:
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
