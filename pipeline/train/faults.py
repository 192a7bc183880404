"""Why a run stops early, a signal or the end of its job's time; and what signals do to other programs.

In a run a handler only notes that it was called; the ranks agree at the step's end, save there, and stop.
Lightning's own answers are switched off: to SIGTERM a collective inside the handler, and an end without a word and with
status 0; to ctrl-C an end with status 1, as of a bug.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # a run catches signals before it imports this
    import lightning.pytorch as pl

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Catches SIGTERM and SIGUSR1 while the run is going; the previous handlers come back with :meth:`restore`.

    SIGUSR1 may be caught before, while the run is made: it then stops after its first step. SIGTERM may not: with it a
    launcher that lost a rank ends the others, which wait for that rank and reach no step.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def install(self, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        for number in signals:
            self._previous.setdefault(number, signal.signal(number, self._note))

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def ignore(self) -> None:
        """From now on they do nothing: all is saved, and what comes late must not make a failure of it."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def requested(self) -> bool:
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


class TimeLimit:
    """Whether the end of a job's time is near.

    Args:
        end_time: in seconds since 1970; None: there is no end.
        margin_seconds: what counts as near; 0: nothing does.
        now: the clock of ``end_time``; replaced in tests.
    """

    def __init__(self, end_time: float | None, margin_seconds: float, now: Callable[[], float] = time.time) -> None:
        self._near_from = math.inf if end_time is None or margin_seconds == 0 else end_time - margin_seconds
        self._now = now

    def is_near(self) -> bool:
        return self._now() >= self._near_from


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program with the status of one that the signal has ended, and what is open is closed."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, before)  # the second one ends what the first could not, such as a callback from C
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fit(trainer: pl.Trainer, module: pl.LightningModule, batches: Iterable[Any]) -> None:
    """Lightning's ``fit``, which leaves signals to whoever has handlers for them.

    Raises:
        KeyboardInterrupt: at ctrl-C.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # Lightning's
    at_ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train_dataloaders=batches)
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, at_ctrl_c)  # which Lightning has switched off
        raise KeyboardInterrupt from None
