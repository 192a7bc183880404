"""Saves that the loop does not wait for: it makes a snapshot in memory, processes beside the ranks write it to disk.

A save goes through two stages, and all ranks go from one to the next at the same step, because what they wait for rides
on the step's sum of integers:

1. every rank's process writes its file; then the ranks exchange sizes and checksums;
2. the process of rank 0 makes a checkpoint of the files: description, rename, deletion of old ones.

A failure on any rank, such as a full disk, ends the save on all of them, and only the save.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from pipeline.checkpoints.directory import temporary_directory
from pipeline.checkpoints.file_writer import FileWriter
from pipeline.checkpoints.meta import checkpoint_directory
from pipeline.checkpoints.pieces import Piece, rank_file_name
from pipeline.checkpoints.retention import Retention
from pipeline.checkpoints.snapshot import Snapshot
from pipeline.train.control import ControlPlane
from pipeline.train.saves import Saves

_REPORT_BYTES = 2048
_MOST_CHARACTERS = 300  # of an error: as JSON one may take six bytes


class Outcome(NamedTuple):
    """How a save ended."""

    step: int
    path: Path
    seconds: float
    """From its step's end until it could be resumed from."""

    stall_seconds: float
    """Of these, the loop stood still."""

    error: str | None
    """Why there is no checkpoint; None: there is."""

    warning: str | None
    """What went wrong afterwards."""

    deleted: Sequence[int]
    """Steps of the checkpoints that it has replaced."""


@dataclass
class _Save:
    """The one that is under way."""

    step: int
    path: Path
    temporary: Path
    description: dict[str, Any]
    began: float
    stall_seconds: float = 0.0
    held_since: float | None = None
    stage: Literal["writing", "publishing"] = "writing"
    report: dict[str, Any] | None = None
    """What this rank's process has answered in this stage."""


class BackgroundSaves(Saves):
    """The saves of a run, one at a time; on every rank.

    Args:
        token: names this start of the run; the same on every rank.
        tell: called on rank 0 when a save has ended.
    """

    def __init__(
        self,
        run_directory: Path,
        control: ControlPlane,
        rank: int,
        retention: Retention,
        token: str,
        tell: Callable[[Outcome], None],
    ) -> None:
        self.run_directory = run_directory
        self.control = control
        self.rank = rank
        self.retention = retention
        self.token = token
        self.tell = tell
        self._save: _Save | None = None
        self._error: str | None = None
        self._snapshot: Snapshot | None = None
        self._writer: FileWriter | None = None

    def prepare(self, make_pieces: Callable[[], Sequence[Piece]]) -> None:
        """Get the memory for snapshots while training goes on; once, when all of the state is there."""
        self._snapshot = self._snapshot or Snapshot()
        with suppress(OSError):  # the save will say so
            self._snapshot.reserve(make_pieces())

    def begin(self, step: int, make_pieces: Callable[[], Sequence[Piece]], description: dict[str, Any]) -> None:
        """Copy the state of ``step`` and have it written; no save may be under way.

        Args:
            make_pieces: what this rank owns of the state.
            description: for ``meta.json``; ``files`` is added.
        """
        assert self._save is None
        path = checkpoint_directory(self.run_directory, step)
        save = _Save(step, path, temporary_directory(path, self.token), description, began=time.perf_counter())
        pieces = make_pieces()
        try:
            self._snapshot = self._snapshot or Snapshot()
            self._snapshot.take(pieces)
            file = save.temporary / rank_file_name(self.rank)
            num_bytes = self._snapshot.num_bytes
            room_bytes = num_bytes * self.control.world_size  # the others' files are about as large
            self._living_writer().ask("write", path=str(file), num_bytes=num_bytes, room_bytes=room_bytes)
        except OSError as error:  # no memory for the snapshot, or none for the process
            save.report = {"error": f"no snapshot was made ({error.strerror or error})"}
        save.stall_seconds = time.perf_counter() - save.began
        self._save = save

    def news(self) -> tuple[int, int]:
        save = self._save
        if save is None:
            return 0, 0
        self._ask_for_report(save, wait=False)
        if save.report is None:
            return 0, 0
        return (0, 1) if "error" in save.report else (1, 0)

    def agree(self, num_done: int, num_failed: int) -> None:
        save = self._save
        if save is None:
            return
        if save.stage == "writing":
            if num_done + num_failed == self.control.world_size:
                self._all_have_written(save)
        elif num_done + num_failed > 0:
            self._end(save, self._reports(save)[0])

    def settle(self) -> str | None:
        since = time.perf_counter()
        while (save := self._save) is not None:
            save.held_since = since
            self._ask_for_report(save, wait=True)
            self.agree(*self.control.sum_integers(*self.news()))
        return self._error

    def close(self) -> None:
        """End this rank's process and give the memory back; a save that is under way is given up."""
        self._save = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None

    def _living_writer(self) -> FileWriter:
        """The process of this rank; another one in place of one that has died."""
        assert self._snapshot is not None
        if self._writer is not None and not self._writer.is_alive:
            self._writer.close()
            self._writer = None
        self._writer = self._writer or FileWriter(self._snapshot.descriptor)
        return self._writer

    def _ask_for_report(self, save: _Save, *, wait: bool) -> None:
        if save.report is None and self._writer is not None:
            save.report = self._writer.answer(wait=wait)

    def _all_have_written(self, save: _Save) -> None:
        reports = self._reports(save)
        errors = [f"rank {rank}: {report['error']}" for rank, report in enumerate(reports) if "error" in report]
        if errors:
            self._end(save, {"error": "; ".join(errors)})
            return
        save.stage, save.report = "publishing", None
        if self.rank == 0:
            try:
                self._publish(save, {rank_file_name(rank): report for rank, report in enumerate(reports)})
            except OSError as error:  # the process has died by now, and there is none in its place
                save.report = {"error": str(error.strerror or error)}

    def _publish(self, save: _Save, files: dict[str, dict[str, Any]]) -> None:
        self._living_writer().ask(
            "publish",
            temporary=str(save.temporary),
            path=str(save.path),
            description={**save.description, "files": files},
            retention=asdict(self.retention),
        )

    def _reports(self, save: _Save) -> list[dict[str, Any]]:
        """What the processes of all ranks have answered; every rank must call it."""
        report = {name: value for name, value in (save.report or {}).items() if name != "deleted"}
        for name in report.keys() & {"error", "warning"}:
            report[name] = report[name][:_MOST_CHARACTERS]
        text = bytearray(json.dumps(report).encode().ljust(_REPORT_BYTES))
        gathered = self.control.gather(torch.frombuffer(text, dtype=torch.uint8))
        return [json.loads(bytes(each.tolist())) for each in gathered]

    def _end(self, save: _Save, report: dict[str, Any]) -> None:
        now = time.perf_counter()
        held = 0.0 if save.held_since is None else now - save.held_since
        deleted = (save.report or {}).get("deleted", [])
        self._save, self._error = None, report.get("error")
        if self.rank > 0:
            return
        if self._error is not None:
            shutil.rmtree(save.temporary, ignore_errors=True)  # all processes have answered: nobody writes to it
        self.tell(
            Outcome(
                step=save.step,
                path=save.path,
                seconds=now - save.began,
                stall_seconds=save.stall_seconds + held,
                error=self._error,
                warning=report.get("warning"),
                deleted=deleted,
            )
        )
