"""Notices that the run hangs or that a rank fails, says where each rank stood, and makes sure that the process ends.

A rank that is dead, stopped or stuck leaves all others waiting in a collective, for as long as its library likes. So a
thread beside the training loop of every rank looks at where its loop is. A loop that does not come on for
``train.hang_timeout_seconds`` will not: its stacks are written down and the process leaves with status 1, whatever
the loop waits in. The launcher (torchrun, SLURM) then ends the other ranks and starts the run again.

Nothing here imports torch: the watch can be tried without a run.
"""

from __future__ import annotations

import faulthandler
import os
import platform
import re
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.base.ranks import RankFacts
from pipeline.config.run import TrainConfig
from pipeline.monitor.events import append_event
from pipeline.monitor.json_lines import utc_now
from pipeline.monitor.step_clock import OUTSIDE_TRAINING
from pipeline.train.run_directory import CONFIG_NAME

STACKS_NAME = "stacks"
HANG_STATUS = 1

_REPORT_SECONDS = 10.0
_STANDARD_ERROR = 2
_LOOKS = 20  # at the loop, in the time that it may stand still
_LOST_RANK = re.compile(r"gloo/|NCCL|ProcessGroup|TCPStore|Connection (closed|reset) by peer|Broken pipe")
"""What torch raises in a collective whose other ranks are gone; there is no class for it."""


class Trouble(NamedTuple):
    """What ends a rank: the name of its event, and the text for its log."""

    event: str
    text: str


class Stillness:
    """For how long a thing has not changed, in time during which somebody looked.

    Time in which the looking process itself was stopped (SLURM suspends a job, Ctrl-Z, a laptop sleeps) does not count:
    the loop was stopped with it.

    Args:
        most_seconds: between two looks; what is above it was spent stopped.
    """

    def __init__(self, most_seconds: float) -> None:
        self.most_seconds = most_seconds
        self._seen: Any = None
        self._seconds = 0.0

    def look(self, now_seen: Any, seconds_since_last: float) -> float:
        """Seconds that ``now_seen`` has been so."""
        if now_seen == self._seen:
            self._seconds += min(seconds_since_last, self.most_seconds)
        else:
            self._seen, self._seconds = now_seen, 0.0
        return self._seconds


class RankWatch:
    """Around the training loop of a rank: a context manager.

    Args:
        module: its ``step``, ``micro_batch``, ``clock.phase`` and ``control`` say where the loop is; the thread only
            reads them, so that the loop pays nothing.
        leave: ends the process at once; replaced in tests.
    """

    def __init__(
        self,
        train: TrainConfig,
        module: Any,
        facts: RankFacts,
        run_directory: Path,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.train = train
        self.module = module
        self.facts = facts
        self.run_directory = run_directory
        self.leave = leave
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pretrain-watch", daemon=True)
        # Their batches have new shapes, for which the model is compiled.
        self._first_steps = {module.first_step, *(stage.first_step for stage in module.plan.micro_rows)}

    def __enter__(self) -> RankWatch:
        if self.train.hang_timeout_seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        # A user's mistake that is found before the first step is found by all ranks alike, and told by the command.
        if isinstance(error, Exception) and not (isinstance(error, UserError) and self.module.micro_batch < 0):
            self._report_in_time(self._of_error(error), error)

    def allowed_seconds(self) -> float:
        """How long the loop may stand still where it is."""
        slow = self.module.clock.phase in OUTSIDE_TRAINING or self.module.step in self._first_steps
        return self.train.slow_timeout_seconds if slow else self.train.hang_timeout_seconds

    def place(self) -> str:
        """Where the loop is, in words."""
        collective = getattr(self.module.control, "running", None)
        inside = f", in the collective `{collective}`" if collective else ""
        return f"step {self.module.step + 1}, phase `{self.module.clock.phase}`{inside}"

    def _watch(self) -> None:
        interval = self.train.hang_timeout_seconds / _LOOKS
        stillness = Stillness(most_seconds=2 * interval)
        last = time.monotonic()
        while not self._stop.wait(interval):
            now = time.monotonic()
            where = (self.module.step, self.module.micro_batch, self.module.clock.phase)
            seconds = stillness.look(where, now - last)
            last = now
            if seconds > self.allowed_seconds():
                self._report_in_time(self._of_hang(seconds), None)
                self.leave(HANG_STATUS)
                return

    def _of_hang(self, seconds: float) -> Trouble:
        return Trouble(
            "hung",
            f"rank {self.facts.rank} has not come on for {seconds:.1f} s ({self.place()}): it or another rank is dead, "
            "stopped or stuck. Leaving, so that the run can be started again from its newest checkpoint.",
        )

    def _of_error(self, error: Exception) -> Trouble:
        text = f"{type(error).__name__}: {error}"
        first_line = text.partition("\n")[0]
        if _LOST_RANK.search(text):
            return Trouble(
                "lost_rank",
                f"rank {self.facts.rank} has lost another rank ({self.place()}), whose own error, if it could tell "
                f"one, stands above or in its own log: {first_line}",
            )
        return Trouble("failed", f"rank {self.facts.rank} has failed ({self.place()}): {first_line}")

    def _report_in_time(self, trouble: Trouble, error: Exception | None) -> None:
        """Report from another thread and wait for it only so long: the disk may be what hangs."""
        reporter = threading.Thread(target=self._report, args=(trouble, error), name="pretrain-report", daemon=True)
        reporter.start()
        reporter.join(_REPORT_SECONDS)

    def _report(self, trouble: Trouble, error: Exception | None) -> None:
        get_logger("watch").error("%s", trouble.text)
        faulthandler.dump_traceback(file=_STANDARD_ERROR, all_threads=True)
        if not (self.run_directory / CONFIG_NAME).exists():  # rank 0 has not made it yet
            return
        try:
            self._write_stacks(trouble.text, error)
            # Of all those that only waited one event is enough; of ranks 0 and 1 one is alive where the other is not.
            if trouble.event == "failed" or self.facts.rank <= 1:
                facts = {"rank": self.facts.rank, "phase": self.module.clock.phase}
                what = {} if error is None else {"error": f"{type(error).__name__}: {error}"[:500]}
                append_event(self.run_directory, trouble.event, step=self.module.step, **facts, **what)
        except OSError as failure:
            get_logger("watch").error("rank %d could not write its stacks: %s", self.facts.rank, failure)

    def _write_stacks(self, text: str, error: Exception | None) -> None:
        path = self.run_directory / STACKS_NAME / f"rank-{self.facts.rank:05d}.txt"
        path.parent.mkdir(exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{utc_now()} on {platform.node()}, process {os.getpid()}\n{text}\n")
            if error is not None:
                file.write("".join(traceback.format_exception(error)))
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.write("\n")
