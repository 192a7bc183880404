"""One job at a time in a directory that several machines may share.

A lock is a hidden file ``.lock-00000003`` in the directory; the one with the highest number counts. To take it is to
make the next number, which only one process can (``O_EXCL``); so nothing is ever taken away under somebody's hands. A
lock that was given up stays there, marked as released.

Whether a holder lives is asked of the process table on its own machine. From elsewhere only its heartbeat tells: it
touches its file every few seconds. The age of the last touch is the difference of two times that the file system itself
has written, since clocks of machines differ. A holder of this very SLURM job before its requeue is gone in any case.

A holder that was overtaken all the same (its machine hung, or was cut off) finds the next number at its next beat, and
ends at once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.base.processes import process_space, start_ticks
from pipeline.base.slurm import own_job_id, own_job_restarts

SILENCE_SECONDS = 120.0
"""A holder on another machine that has not touched its file for so long is dead. A file system may show old times of a
file for up to a minute (NFS), and a busy one may keep a touch waiting."""

_BEATS = 8  # in the time of silence
_LOOK_SECONDS = 0.5
_NAME = re.compile(r"\.lock-(\d{8})")


@dataclass(frozen=True)
class Holder:
    """Who has a lock."""

    host: str
    process: int
    space: str
    """What the process's number is counted in (`processes.py`)."""
    ticks: int
    """When the process was started."""
    job: str | None
    restarts: int
    """How often SLURM had started the job again by then."""
    since: str
    silence_seconds: float
    released: bool = False

    @classmethod
    def this_process(cls, silence_seconds: float) -> Holder:
        return cls(
            host=platform.node(),
            process=os.getpid(),
            space=process_space(),
            ticks=start_ticks(os.getpid()) or 0,
            job=own_job_id(),
            restarts=own_job_restarts() or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            silence_seconds=silence_seconds,
        )

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.process} on host {self.host}{job}, since {self.since}"


class Seen(NamedTuple):
    """A lock as somebody else sees it."""

    number: int
    holder: Holder | None
    """None: it is being written."""
    touched: float
    """Time of the last touch, by the clock of the file system."""


def verdict(holder: Holder, me: Holder, ticks_of: Callable[[int], int | None]) -> Literal["free", "held", "unsure"]:
    """What can be said of a lock without waiting for a heartbeat.

    Args:
        ticks_of: when the process of a number here was started, None if there is none.
    """
    requeued = me.job is not None and me.job == holder.job and me.restarts > holder.restarts
    if holder.released or requeued:
        return "free"
    if holder.space != me.space:
        return "unsure"
    return "held" if ticks_of(holder.process) == holder.ticks else "free"


class DirectoryLock:
    """Holds the directory inside a ``with``; it is made if it is not there.

    Args:
        what: names the directory in errors, as its key of the config.
        silence_seconds: see :data:`SILENCE_SECONDS`; written into the lock, so that all judge it alike.
        leave: ends the process at once when it was overtaken; replaced in tests.
    """

    def __init__(
        self,
        directory: Path,
        what: str,
        silence_seconds: float = SILENCE_SECONDS,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.directory = directory
        self.what = what
        self.leave = leave
        self.me = Holder.this_process(silence_seconds)
        self.number = 0
        self._file = -1
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="pretrain-lock", daemon=True)

    def __enter__(self) -> DirectoryLock:
        """Take the lock. Waits only for a holder on another machine: until it beats, or has been silent for too long.

        Raises:
            UserError: somebody has it, or the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            while not self._taken_after(self._free_number()):
                pass  # another was faster: look again
        except OSError as error:
            raise UserError(f"{self.what}: {self.directory} cannot be written ({error.strerror or error}).") from None
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._released.set()
        self._beats.join()
        _write(self._file, Holder(**{**asdict(self.me), "released": True}))
        os.close(self._file)

    def _free_number(self) -> int:
        """The highest number of a lock that nobody holds, 0 where there is none."""
        first: Seen | None = None
        while (seen := _look(self.directory)) is not None:
            answer = verdict(seen.holder, self.me, start_ticks) if seen.holder else "unsure"
            if first is None or first.number != seen.number:
                first = seen
                if answer == "unsure":
                    get_logger().warning(
                        "%s: %s was taken by %s, which cannot be seen from here: waiting for a sign of life",
                        self.what, self.directory, seen.holder or "a process that is starting",
                    )  # fmt: skip
            if answer == "held" or (answer == "unsure" and seen.touched > first.touched):
                raise UserError(_refusal(self.what, self.directory, seen.holder))
            silence = seen.holder.silence_seconds if seen.holder else self.me.silence_seconds
            if answer == "free" or _file_system_time(self.directory) - seen.touched > silence:
                return seen.number
            time.sleep(_LOOK_SECONDS)
        return 0

    def _taken_after(self, number: int) -> bool:
        """Whether the next number is ours now."""
        self.number = number + 1
        try:
            self._file = os.open(self._path(self.number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        _write(self._file, self.me)
        for older in _numbers(self.directory):
            if older < self.number:
                self._path(older).unlink(missing_ok=True)
        return True

    def _beat(self) -> None:
        while not self._released.wait(self.me.silence_seconds / _BEATS):
            try:
                overtaken = max(_numbers(self.directory), default=self.number) != self.number
                os.utime(self._file)  # without a time of ours: the file system's
            except OSError:  # the disk is away; the next beat tries again, and the run has its own word on it
                continue
            if overtaken:
                get_logger().error(
                    "%s: %s has been taken over (%s), because this process had shown no sign of life; it ends here",
                    self.what, self.directory, getattr(_look(self.directory), "holder", None),
                )  # fmt: skip
                self.leave(1)
                return

    def _path(self, number: int) -> Path:
        return self.directory / f".lock-{number:08d}"


def refuse_if_held(directory: Path, what: str) -> None:
    """Refuse at once what :class:`DirectoryLock` would refuse; what needs waiting is left to it.

    Raises:
        UserError: a process of this machine has the lock.
    """
    seen = _look(directory) if directory.is_dir() else None
    if seen and seen.holder and verdict(seen.holder, Holder.this_process(SILENCE_SECONDS), start_ticks) == "held":
        raise UserError(_refusal(what, directory, seen.holder))


def _refusal(what: str, directory: Path, holder: Holder | None) -> str:
    return (
        f"{what}: {directory} is in use by {holder or 'a process that is starting'}. Two runs would spoil each other's "
        f"files: wait until it ends, stop it, or name another directory."
    )


def _look(directory: Path) -> Seen | None:
    """The lock that counts; None where there is none."""
    while numbers := _numbers(directory):
        try:
            # Opened, not only looked at: that is when NFS asks its server.
            with open(directory / f".lock-{max(numbers):08d}", "rb") as file:
                return Seen(max(numbers), _read(file.read()), os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:  # overtaken meanwhile
            continue
    return None


def _numbers(directory: Path) -> list[int]:
    return [int(match[1]) for name in os.listdir(directory) if (match := _NAME.fullmatch(name))]


def _read(content: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):  # being written
        return None


def _write(descriptor: int, holder: Holder) -> None:
    content = json.dumps(asdict(holder), ensure_ascii=False).encode() + b"\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)


def _file_system_time(directory: Path) -> float:
    """Now, by the clock that writes the times of files."""
    probe = directory / f".lock-probe-{os.getpid()}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
