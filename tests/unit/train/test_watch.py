"""The watch beside the training loop: when it leaves, when it does not, and what it writes down."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts
from pipeline.config.derived import BatchPlan
from pipeline.config.run import TrainConfig
from pipeline.config.stages import Stages
from pipeline.monitor.events import read_events
from pipeline.monitor.step_clock import PHASES, StepClock
from pipeline.train import watch as watch_module
from pipeline.train.watch import RankWatch, Stillness

STAGES = Stages.of_lengths([(50, 8, 64), (None, 8, 128)]).all
GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:33175"


def module_at(step: int, phase: Any = "communication", micro_batch: int = 0) -> Any:
    """A loop of a run that was resumed at step 20."""
    clock = StepClock()
    clock.enter(phase)
    control = SimpleNamespace(running="barrier")
    plan = BatchPlan(8, 1, dict.fromkeys(STAGES, 1))
    return SimpleNamespace(step=step, micro_batch=micro_batch, clock=clock, control=control, first_step=20, plan=plan)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    return tmp_path


def make_watch(module: Any, run: Path, rank: int = 0, hang_seconds: float = 600.0, **more: Any) -> RankWatch:
    train = TrainConfig(hang_timeout_seconds=hang_seconds, slow_timeout_seconds=3600.0)
    return RankWatch(train, module, RankFacts(rank=rank, world_size=8), run, **more)


def test_stillness_adds_up_and_begins_anew_with_every_change() -> None:
    stillness = Stillness(most_seconds=2.0)
    seen = [("a", 1.0), ("a", 1.0), ("a", 1.5), ("b", 1.0), ("b", 1.0), ("a", 1.0)]
    assert [stillness.look(*look) for look in seen] == [0.0, 1.0, 2.5, 0.0, 1.0, 0.0]


def test_time_in_which_the_process_was_stopped_is_no_stillness() -> None:
    stillness = Stillness(most_seconds=2.0)
    stillness.look("a", 1.0)
    assert stillness.look("a", 100_000.0) == 2.0


def test_what_may_take_longer(run: Path) -> None:
    slow = {phase for phase in PHASES if make_watch(module_at(30, phase), run).allowed_seconds() == 3600.0}
    assert slow == {"validation", "checkpoint"}
    slow_steps = [step for step in range(60) if make_watch(module_at(step), run).allowed_seconds() == 3600.0]
    assert slow_steps == [0, 20, 50], "the first of the run, of this start, and of the second stage"


def test_a_loop_that_stands_still_ends_the_process(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left = threading.Event()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        left.set()

    with make_watch(module_at(30), run, rank=1, hang_seconds=0.2, leave=leave):
        assert left.wait(60)
    assert statuses == [1]
    written = (run / "stacks/rank-00001.txt").read_text()
    assert "rank 1 has not come on for 0." in written
    assert "(step 31, phase `communication`, in the collective `barrier`)" in written
    for text in (written, capfd.readouterr().err):
        assert "in test_a_loop_that_stands_still_ends_the_process" in text, "the stack of the thread that stands still"
    (event,) = read_events(run)
    assert (event["event"], event["step"], event["rank"], event["phase"]) == ("hung", 30, 1, "communication")


def test_a_loop_that_goes_on_is_left_alone(run: Path) -> None:
    statuses: list[int] = []
    module = module_at(30)
    with make_watch(module, run, hang_seconds=0.6, leave=statuses.append):
        for _ in range(80):
            threading.Event().wait(0.01)
            module.micro_batch += 1
    with make_watch(module_at(30, "checkpoint"), run, hang_seconds=0.05, leave=statuses.append):
        threading.Event().wait(0.3)
    with make_watch(module_at(30), run, hang_seconds=0.0, leave=statuses.append):
        threading.Event().wait(0.1)
    assert statuses == []


def test_a_disk_that_hangs_does_not_keep_the_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_REPORT_SECONDS", 0.05)
    never, left = threading.Event(), threading.Event()
    monkeypatch.setattr(RankWatch, "_write_stacks", lambda *_: never.wait(60))
    with make_watch(module_at(30), run, hang_seconds=0.1, leave=lambda _: left.set()):
        assert left.wait(60)
    never.set()


PROGRAM = """
import sys, time
from pathlib import Path
from tests.unit.train.test_watch import make_watch, module_at
with make_watch(module_at(30), Path(sys.argv[1]), hang_seconds=0.2):
    time.sleep(60)
"""


def test_the_status_of_a_process_that_hangs(run: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(run)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert 'File "<string>", line 6 in <module>' in ended.stderr


@pytest.mark.parametrize(
    ("rank", "error", "event"),
    [
        (5, OSError(5, "Input/output error"), "failed"),
        (1, RuntimeError(GLOO), "lost_rank"),
        (5, RuntimeError(GLOO), None),
        (5, UserError("no room"), "failed"),
    ],
)
def test_what_an_error_leaves(rank: int, error: Exception, event: str | None, run: Path) -> None:
    with pytest.raises(type(error)), make_watch(module_at(30), run, rank=rank):
        raise error
    assert str(error) in (run / f"stacks/rank-{rank:05d}.txt").read_text()
    assert [told["event"] for told in read_events(run)] == ([event] if event else [])


def test_mistakes_of_the_user_before_the_first_step_are_told_by_the_command_alone(run: Path) -> None:
    with pytest.raises(UserError), make_watch(module_at(20, micro_batch=-1), run):
        raise UserError("another number of ranks")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml"]


def test_nothing_is_written_into_a_directory_that_is_no_run_yet(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="early"), make_watch(module_at(20), tmp_path, rank=3):
        raise OSError("early")
    assert list(tmp_path.iterdir()) == []
