"""One trial: a run of two ranks that signals hit at random moments, started again by the same command until it ends.

All processes are the real ones, unchanged: `pretrain launch torchrun`, torchrun, two ranks, loader processes. What a
trial does follows from its seed alone; it looks at files and at the process table to find the moment.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pipeline.launch.torchrun import child_processes
from pipeline.monitor.events import read_events
from pipeline.monitor.goodput import goodput_of
from pipeline.monitor.progress import read_progress

Moment = Literal["start-up", "loader", "step", "save"]
Target = Literal["rank 0", "rank 1", "torchrun", "launcher"]

SIGNALS: Final = ("SIGTERM", "SIGUSR1", "SIGKILL")
MOMENTS: Final[tuple[Moment, ...]] = ("start-up", "loader", "step", "save")
TARGETS: Final[tuple[Target, ...]] = ("rank 0", "rank 0", "rank 1", "rank 1", "torchrun", "launcher")
STRATEGIES: Final = ("ddp", "zero1")
NUM_STEPS: Final = 60
SAVE_EVERY_STEPS: Final = 10

_LOOK_SECONDS: Final = 0.002
_LOADER_SECONDS: Final = 0.1
"""In which a new loader process starts and makes its first batches."""
_TRIAL_VARIABLE: Final = "PRETRAIN_FAULTS_TRIAL"
"""In the environment of all processes of a trial: orphans are found by it."""

CONFIG: Final = f"""
data: {{corpus: %s, sequence_length: 64}}
model: {{hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 64, max_positions: 64, hidden_dropout: 0.1}}
optimizer: {{learning_rate: 1e-2}}
schedule: {{warmup_steps: 3}}
train: {{steps: {NUM_STEPS}, global_batch_size: 8, micro_batch_size: 2, device: cpu, precision: fp32,
         threads_per_rank: 1, hang_timeout_seconds: 30}}
checkpoint: {{every_steps: {SAVE_EVERY_STEPS}, keep_last: 2}}
monitor: {{log_every_steps: 1, wandb: "off"}}
"""


class Stuck(Exception):
    """Something does not end."""


@dataclass(frozen=True)
class Blow:
    """A signal, to whom, and when."""

    signal: str
    target: Target
    moment: Moment
    wait: float
    """Share of what is left of the run before a `step` or a `save` is waited for."""
    delay: float
    """Share of the moment's length after which the signal comes."""

    def __str__(self) -> str:
        return f"{self.signal} to {self.target} at {self.moment}"


@dataclass(frozen=True)
class Trial:
    """What is done to a run."""

    seed: int
    strategy: str
    blows: tuple[Blow, ...]

    @property
    def overrides(self) -> list[str]:
        workers = int(any(blow.moment == "loader" for blow in self.blows))
        return ["--train.strategy", self.strategy, "--data.workers", str(workers)]


def draw(seed: int) -> Trial:
    """The trial of this number: strategies in turn, one or two signals, each to one start of the run."""
    chance = random.Random(seed)
    blows = tuple(
        Blow(chance.choice(SIGNALS), chance.choice(TARGETS), chance.choice(MOMENTS), chance.random(), chance.random())
        for _ in range(chance.choice((1, 2)))
    )
    return Trial(seed, STRATEGIES[seed % len(STRATEGIES)], blows)


@dataclass
class Undisturbed:
    """The run that all of a strategy are compared with, and how long its parts take."""

    directory: Path
    start_up_seconds: float
    step_seconds: float
    save_seconds: float


@dataclass
class Outcome:
    """How a trial went."""

    trial: Trial
    struck: list[str] = field(default_factory=list)
    """Signals that found their process."""
    starts: int = 0
    refused: int = 0
    """Starts that found the run still at work: its launcher was killed, its ranks went on."""
    lost_steps: int = 0
    problems: list[str] = field(default_factory=list)
    """What differs from the undisturbed run; empty where it survived."""
    seconds: float = 0.0


class Starter:
    """Starts a run and looks at it from outside.

    Args:
        config: of the run; its directory has the same name.
        limit_seconds: how long a start, or what it leaves, may go on without a sign of life.
    """

    def __init__(self, config: Path, overrides: list[str], limit_seconds: float) -> None:
        self.run = config.with_suffix("")
        self.limit_seconds = limit_seconds
        command = [sys.executable, "-m", "pipeline.cli", "launch", "torchrun", str(config), "--processes", "2"]
        self.command = [*command, *overrides]
        self.token = f"{config}-{os.getpid()}"
        self.log = config.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.began = 0.0

    def start(self) -> None:
        repository = str(Path(__file__).resolve().parent.parent)
        environment = {**os.environ, "PYTHONPATH": repository, _TRIAL_VARIABLE: self.token}
        self.began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> int:
        """Exit status of the command.

        Raises:
            Stuck: it does not end.
        """
        assert self.process is not None
        self._wait_until(self.ended, "the command")
        return self.process.wait()

    def wait_for_orphans(self) -> bool:
        """Wait for all processes of the trial to end; whether there were any.

        Raises:
            Stuck: they do not end.
        """
        found = bool(self.processes())
        self._wait_until(lambda: not self.processes(), "what the command has left")
        return found

    def _wait_until(self, over: Callable[[], bool], what: str) -> None:
        seen, since = self._signs_of_life(), time.monotonic()
        while not over():
            now, signs = time.monotonic(), self._signs_of_life()
            if signs != seen:
                seen, since = signs, now
            elif now - since > self.limit_seconds:
                raise Stuck(f"{what} has neither ended nor done anything for {self.limit_seconds:g} s")
            time.sleep(0.05)

    def _signs_of_life(self) -> tuple[int, Any]:
        """Bytes of the log and the step that was done last: on a busy machine a start may take long, but it goes on."""
        return self.log.stat().st_size if self.log.exists() else 0, read_progress(self.run)

    def processes(self) -> list[int]:
        """All of the trial that live, orphans too."""
        mark, found = f"{_TRIAL_VARIABLE}={self.token}\0".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes() + b"\0":
                    found.append(int(path.parent.name))
            except OSError:  # it ended meanwhile, or is somebody else's
                continue
        return found

    def process_of(self, target: Target) -> int | None:
        """Number of the process, None while it is not there."""
        assert self.process is not None
        if target == "launcher":
            return self.process.pid
        torchrun = child_processes(self.process.pid)
        if target == "torchrun" or not torchrun:
            return torchrun[0] if torchrun else None
        ranks = child_processes(torchrun[0])
        number = int(target[-1])
        return ranks[number] if len(ranks) > number else None

    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def kill(self) -> None:
        """End what is left of the trial."""
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


@contextmanager
def started(config: Path, overrides: list[str], limit_seconds: float) -> Iterator[Starter]:
    """A starter whose processes do not outlive the block."""
    starter = Starter(config, overrides, limit_seconds)
    try:
        yield starter
    finally:
        starter.kill()


def write_config(directory: Path, name: str, corpus: Path) -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(f"run_directory: {directory / name}\n{CONFIG % corpus}")
    return path


def run_undisturbed(strategy: str, directory: Path, corpus: Path, limit_seconds: float) -> Undisturbed:
    """A run to which nothing happens.

    Raises:
        RuntimeError: it fails.
    """
    config = write_config(directory, f"undisturbed-{strategy}", corpus)
    with started(config, ["--train.strategy", strategy], limit_seconds) as starter:
        starter.start()
        if starter.wait() != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{starter.log.read_text()[-3000:]}")
    events = {event["event"]: event for event in read_events(starter.run)}
    lines = metrics_of(starter.run)
    return Undisturbed(
        starter.run,
        start_up_seconds=sum(events["training"]["start_up_seconds"].values()),
        step_seconds=lines[-1]["seconds_per_step"],
        save_seconds=events["checkpoint"]["seconds"],
    )


def run_trial(trial: Trial, undisturbed: Undisturbed, directory: Path, corpus: Path, limit_seconds: float) -> Outcome:
    """Do to a run what the trial says, start it again until it is finished, and compare."""
    outcome, began = Outcome(trial), time.monotonic()
    config = write_config(directory, f"trial-{trial.seed}", corpus)
    with started(config, trial.overrides, limit_seconds) as starter:
        try:
            _until_finished(starter, outcome, undisturbed)
            starter.wait_for_orphans()
            outcome.problems += differences(starter.run, undisturbed.directory)
            outcome.lost_steps = goodput_of(starter.run)["redone_steps"]
        except Stuck as stuck:
            outcome.problems.append(f"deadlock: {stuck}")
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _until_finished(starter: Starter, outcome: Outcome, undisturbed: Undisturbed) -> None:
    blows = list(outcome.trial.blows)
    while not is_finished(starter.run):
        if outcome.starts > 3 * len(outcome.trial.blows) + 3:
            raise Stuck(f"it has not finished in {outcome.starts} starts")
        newest, num_events = newest_checkpoint(starter.run), len(read_events(starter.run))
        alone, seen = not starter.processes(), starter.log.stat().st_size if starter.log.exists() else 0
        starter.start()
        outcome.starts += 1
        if blows and strike(blows[0], starter, undisturbed):
            outcome.struck.append(str(blows.pop(0)))
        starter.wait()
        if "is in use by" in starter.log.read_text()[seen:]:
            outcome.refused += 1
            starter.wait_for_orphans()
        begun = [event for event in read_events(starter.run)[num_events:] if event["event"] in ("started", "resumed")]
        if alone and begun and begun[0]["step"] != newest:
            outcome.problems.append(f"begun at step {begun[0]['step']}, the newest checkpoint was that of {newest}")


def strike(blow: Blow, starter: Starter, undisturbed: Undisturbed) -> bool:
    """Wait for the moment and send the signal; False where the start ended before it came."""
    first = newest_checkpoint(starter.run)
    left = NUM_STEPS - first
    before = read_progress(starter.run)

    def steps_done() -> int:
        progress = read_progress(starter.run)
        return 0 if progress is None or progress == before else progress.step

    step = first + max(1, min(left - 1, round(blow.wait * left)))
    last_save = NUM_STEPS - SAVE_EVERY_STEPS  # the one at the end may be over before it is seen
    save_after = min(step, max(first, last_save - 1))
    comes: dict[Moment, tuple[Callable[[], Any], float]] = {
        "start-up": (lambda: starter.process_of(blow.target), undisturbed.start_up_seconds),
        "loader": (lambda: child_processes(starter.process_of("rank 0") or 0), _LOADER_SECONDS),
        "step": (lambda: steps_done() >= step, undisturbed.step_seconds),
        "save": (lambda: steps_done() >= save_after and is_saving(starter.run), undisturbed.save_seconds),
    }
    has_come, length_seconds = comes[blow.moment]
    deadline = starter.began + 3 * starter.limit_seconds  # of a busy machine; a start that hangs is found later
    while not has_come():
        if starter.ended() or time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    time.sleep(blow.delay * length_seconds)
    process = starter.process_of(blow.target)
    if starter.ended() or process is None:
        return False
    try:
        os.kill(process, signal.Signals[blow.signal])
    except ProcessLookupError:
        return False
    return True


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    directory = run / "checkpoints"
    return directory.is_dir() and any(name.startswith(".step-") for name in os.listdir(directory))


def newest_checkpoint(run: Path) -> int:
    """Step of the newest whole one, 0 without one."""
    return max((int(path.parent.name[5:]) for path in run.glob("checkpoints/step-????????/meta.json")), default=0)


def is_finished(run: Path) -> bool:
    return any(event["event"] == "finished" for event in read_events(run))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    from pipeline.monitor.sinks import read_metrics

    return read_metrics(run)


def differences(run: Path, undisturbed: Path) -> list[str]:
    """What of a finished run is not that of the undisturbed one, to the bit."""
    import torch

    from pipeline.checkpoints.reading import read_weights

    found = []
    for name in ("step", "loss", "grad_norm", "lr", "tokens", "batch_digest"):
        columns = [[line.get(name) for line in metrics_of(directory)] for directory in (run, undisturbed)]
        if columns[0] != columns[1]:
            found.append(f"{name} differs")
    ours, theirs = (
        read_weights(directory / "checkpoints" / f"step-{NUM_STEPS:08d}") for directory in (run, undisturbed)
    )
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in theirs):
        found.append("weights differ")
    return found
