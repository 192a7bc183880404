"""Where the time of a step goes: sleeps put into a run are found again in the phase in which they slept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.monitor import sinks
from pipeline.monitor.step_clock import PHASES
from pipeline.train import module, saving, step_timing, validation
from pipeline.train.run import train
from tests.runs import load, metrics_of, tiny_corpus, write_config

SLEEP_SECONDS = 0.16
NUM_STEPS = 6
OVERRIDES = (
    *("--train.steps", str(NUM_STEPS), "--train.micro_batch_size", "8", "--monitor.log_every_steps", "1"),
    *("--checkpoint.every_steps", "1", "--evaluation.every_steps", "1", "--monitor.batch_digest", "false"),
)


class Sleeps:
    """How long each of the sleeps really took, in order, by phase: a busy machine oversleeps."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def sleep(self, phase: str, function: Callable[..., Any] = lambda: None, *args: Any, **kwargs: Any) -> Any:
        """Sleep, then call the function; both are timed."""
        started = time.perf_counter()
        time.sleep(SLEEP_SECONDS)
        result = function(*args, **kwargs)
        self.seconds.setdefault(phase, []).append(time.perf_counter() - started)
        return result

    def before(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function after a sleep."""
        return lambda *args, **kwargs: self.sleep(phase, function, *args, **kwargs)


def plant(sleeps: Sleeps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep a step in everything that has a phase."""

    def slow_batches(self: Any) -> Iterator[Any]:
        for batch in self.inner:
            sleeps.sleep("data_wait")
            yield batch

    class SlowLoader:
        __iter__ = slow_batches

        def __init__(self, inner: Any) -> None:
            self.inner = inner

    original = step_timing.TimedBatches.__init__
    monkeypatch.setattr(
        step_timing.TimedBatches, "__init__", lambda self, loader, clock: original(self, SlowLoader(loader), clock)
    )

    def slow_loss(self: Any, batch: Any) -> Any:
        if not torch.is_grad_enabled():  # validation
            return loss_sums(self, batch)
        return sleeps.sleep("forward", loss_sums, self, batch)

    loss_sums = module.PretrainModule.loss_sums
    monkeypatch.setattr(module.PretrainModule, "loss_sums", slow_loss)
    monkeypatch.setattr(module.PretrainModule, "backward", sleeps.before("backward", module.PretrainModule.backward))
    make_optimizer = module.make_optimizer

    def slow_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = make_optimizer(*args, **kwargs)
        optimizer.register_step_post_hook(lambda *_: sleeps.sleep("optimizer"))
        return optimizer

    monkeypatch.setattr(module, "make_optimizer", slow_optimizer)
    monkeypatch.setattr(sinks.JsonlSink, "log", sleeps.before("logging", sinks.JsonlSink.log))
    monkeypatch.setattr(saving.Lifecycle, "_save", sleeps.before("checkpoint", saving.Lifecycle._save))
    monkeypatch.setattr(validation, "held_out_metrics", sleeps.before("validation", validation.held_out_metrics))


@pytest.fixture
def lines_and_sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], Sleeps]:
    corpus = tiny_corpus(tmp_path / "corpus")
    sleeps = Sleeps()
    plant(sleeps, monkeypatch)
    config = load(write_config(tmp_path, corpus.directory), *OVERRIDES)
    train(config)
    return metrics_of(tmp_path / "run"), sleeps


def test_sleeps_are_charged_to_their_phase(lines_and_sleeps: tuple[list[dict[str, Any]], Sleeps]) -> None:
    """Never less than was slept, and within 5 % where no other work of the machine came between."""
    lines, sleeps = lines_and_sleeps
    assert set(sleeps.seconds) == set(PHASES) - {"communication", "other"}
    for phase, slept in sleeps.seconds.items():
        charged = [line[f"time_{phase}"] for line in lines]
        # Batches are fetched a step ahead; what comes after a line is written stands in the next one.
        shift = {"data_wait": 1, "logging": -1, "checkpoint": -1}.get(phase, 0)
        pairs = [(charged[number], slept[number + shift]) for number in range(1, NUM_STEPS - 1)]
        assert all(time >= sleep for time, sleep in pairs), (phase, pairs)
        assert min(time / sleep for time, sleep in pairs) < 1.05, (phase, pairs)
    assert min(line["time_other"] for line in lines) < 0.05 * SLEEP_SECONDS
    assert {line["time_communication"] < SLEEP_SECONDS for line in lines} == {True}


def test_restoring_a_checkpoint_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    path, overrides = write_config(tmp_path, corpus.directory), ("--checkpoint.every_steps", "2")
    train(load(path, *overrides, "--train.steps", "4"))
    sleeps, load_checkpoint = Sleeps(), saving.load_checkpoint

    def slow(*args: Any) -> None:
        for _ in range(20):
            sleeps.sleep("restoring")
        load_checkpoint(*args)

    monkeypatch.setattr(saving, "load_checkpoint", slow)
    train(load(path, *overrides, "--train.steps", "5"))
    last = metrics_of(tmp_path / "run")[-1]
    assert last["step"] == 5
    assert sum(last[f"time_{phase}"] for phase in PHASES) < sum(sleeps.seconds["restoring"])
