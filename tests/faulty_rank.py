"""`pretrain train` as a rank that something happens to: stands for `-m pipeline.cli` in a command line of torchrun.

``FAULTS`` names what happens, in order, each once and each in a start of its own, as ``kind:rank:step`` (steps counted
from 1): a signal that the rank gets from itself when the step begins (``SIGKILL``, ``SIGSTOP``), or ``disk``: its
loader cannot read the step. ``FAULTS_DONE`` is a file that remembers them, one line each; ``STEPS_DONE`` gets a line
for every step that rank 0 has done, in any start. ``HELD_SAVE`` (``rank:step``): that rank's file of that checkpoint is
never done, in the first start.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.checkpoints.directory import temporary_directory
from pipeline.checkpoints.meta import checkpoint_directory
from pipeline.checkpoints.pieces import rank_file_name
from pipeline.cli import main
from pipeline.data.loader import _Steps
from pipeline.launch.torchrun import torchrun_command
from pipeline.train.background_saves import BackgroundSaves
from pipeline.train.module import PretrainModule

REPOSITORY = Path(__file__).resolve().parent.parent


def command_with_faults(config: Path, overrides: list[str], max_restarts: int) -> list[str]:
    """torchrun's command line for two ranks of this module."""
    command = torchrun_command(config, 2, overrides, max_restarts=max_restarts)
    return ["tests.faulty_rank" if part == "pipeline.cli" else part for part in command]


def fault_environment(directory: Path, faults: list[str]) -> dict[str, str]:
    """What a process that starts :func:`command_with_faults` must have in its environment."""
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "FAULTS": " ".join(faults),
        "FAULTS_DONE": str(directory / "faults_done"),
        "STEPS_DONE": str(directory / "steps_done"),
    }


def _append(variable: str, line: str) -> None:
    with open(os.environ[variable], "a") as file:
        file.write(line + "\n")


def _due(step: int) -> str | None:
    """The kind of fault that this rank has at the step that begins, noted as done."""
    done = Path(os.environ["FAULTS_DONE"])
    number = len(done.read_text().splitlines()) if done.exists() else 0
    kind, rank, at = [*os.environ["FAULTS"].split(), "none:0:0"][number].split(":")
    if (rank, int(at)) != (os.environ["RANK"], step):
        return None
    _append("FAULTS_DONE", kind)
    return kind


def install_faults() -> None:
    """Have them happen in this process."""
    begin_step, end_batch, make = PretrainModule._begin_step, PretrainModule.on_train_batch_end, _Steps._made
    loader_fails = "disk:" in os.environ["FAULTS"]
    unreadable: set[int] = set()

    def begin(self: PretrainModule, batch: Any) -> None:
        if not loader_fails and (kind := _due(self.step + 1)):
            os.kill(os.getpid(), signal.Signals[kind])
        begin_step(self, batch)

    def end(self: PretrainModule, *arguments: Any) -> None:
        if self.finishes_step and os.environ["RANK"] == "0":
            _append("STEPS_DONE", str(self.step + 1))
        end_batch(self, *arguments)

    def made(self: Any, steps: Any) -> Any:
        if loader_fails:
            unreadable.update(step for step in steps if _due(step + 1))
        if unreadable.intersection(steps):  # for this process's life: the loader asks a second time
            raise OSError(errno.EIO, "Input/output error", "train/00000.tar")
        return make(self, steps)

    PretrainModule._begin_step, PretrainModule.on_train_batch_end, _Steps._made = begin, end, made  # type: ignore[method-assign]
    if "HELD_SAVE" in os.environ:
        _hold_a_save(*os.environ["HELD_SAVE"].split(":"))


def _hold_a_save(rank: str, step: str) -> None:
    """Have the process that writes a rank's file stand still in the middle of it, in the first start."""
    begin_save = BackgroundSaves.begin

    def begin(self: BackgroundSaves, step_now: int, *arguments: Any) -> None:
        if (os.environ["RANK"], step_now) == (rank, int(step)) and not Path(os.environ["FAULTS_DONE"]).exists():
            path = checkpoint_directory(self.run_directory, step_now)
            file = temporary_directory(path, self.token) / rank_file_name(int(rank))
            file.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(file)
            os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # open to its end, and never read
        begin_save(self, step_now, *arguments)

    BackgroundSaves.begin = begin  # type: ignore[method-assign]


if __name__ == "__main__":
    install_faults()
    sys.exit(main())
