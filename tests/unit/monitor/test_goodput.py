"""Goodput by hand: whole runs, killed ones, and what old or torn records leave of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.monitor.events import append_event
from pipeline.monitor.goodput import CAUSES, goodput, goodput_of
from pipeline.monitor.json_lines import encode_line, moment, utc_time
from pipeline.monitor.progress import PROGRESS_NAME, Progress, ProgressFile, read_progress

START = 1_800_000_000.0


def event(at: float, name: str, step: int | None = None, **facts: Any) -> dict[str, Any]:
    times = {key: utc_time(START + facts.pop(key)) for key in ("began", "reached_at") if key in facts}
    return {"time": utc_time(START + at), "event": name, "step": step, **times, **facts}


def line(at: float, step: int, **seconds: float) -> dict[str, Any]:
    return {"time": utc_time(START + at), "step": step, "seconds_per_step": 1.0, **seconds}


def progress(at: float, step: int) -> Progress:
    return Progress(step, START + at)


def checked(told: dict[str, Any]) -> dict[str, Any]:
    """The parts add up to the whole, whatever the run."""
    assert tuple(told["lost_seconds"]) == CAUSES
    assert min(told["lost_seconds"].values()) >= 0
    assert sum(told["lost_seconds"].values()) + told["productive_seconds"] == pytest.approx(told["wall_seconds"])
    return {"productive": told["productive_seconds"], **told["lost_seconds"]}


def test_an_undisturbed_run() -> None:
    events = [
        event(8, "started", 0, began=0),
        event(10, "training", 0),
        event(24, "checkpoint", 10, stall_seconds=2.0),
        event(36, "checkpoint", 20, stall_seconds=1.0),
        event(36, "finished", 20),
        event(9000, "exported", 20),
    ]
    # The first five steps take 1.4 s each: 2 s of them for the compiler. The third line holds the first checkpoint.
    metrics = [
        line(17, 5, seconds_per_step=1.4, time_data_wait=0.0),
        line(22, 10, time_data_wait=0.1, time_validation=0.2),
        line(30, 15, time_data_wait=0.0),
        line(35, 20, time_data_wait=0.0),
    ]
    told = goodput(events, metrics, progress=progress(35, 20))
    seconds = checked(told)
    assert (told["wall_seconds"], told["steps"], told["redone_steps"], told["starts"]) == (36, 20, 0, 1)
    expected = {"stopped": 0, "start_up": 10, "redo": 0, "checkpoint": 3, "validation": 1, "data_wait": 0.5}
    assert seconds == pytest.approx({**expected, "compile": 2, "productive": 19.5})
    assert told["goodput"] == pytest.approx(19.5 / 36)


KILLED = [
    event(8, "started", 0, began=0),
    event(10, "training", 0),
    event(21, "checkpoint", 10, stall_seconds=1.0),
    # A rank was killed during step 15, the others noticed a minute later; back in the queue for 100 s.
    event(85, "hung", 14, rank=0),
    event(134, "resumed", 10, began=125, reached=14, reached_at=25),
    event(135, "training", 10),
    # Killed during step 13, at once started again, and killed before the first step.
    event(145, "resumed", 10, began=140, reached=12, reached_at=137),
    event(160, "resumed", 10, began=155, reached=10, reached_at=146),
    event(162, "training", 10),
    event(172, "checkpoint", 20, stall_seconds=0.5),
    event(172, "finished", 20),
]


def test_steps_that_were_done_again() -> None:
    metrics = [line(15, 5), line(20, 10), line(167, 15), line(171.5, 20)]
    told = goodput(KILLED, metrics, [line(136, 11)], progress(171.5, 20))
    seconds = checked(told)
    assert (told["redone_steps"], told["starts"], told["steps"], told["wall_seconds"]) == (4 + 2, 4, 20, 172)
    # Redo: from the end of step 10's save (21) to 25, and the two steps from 135 to 137.
    assert seconds["redo"] == pytest.approx(4 + 2)
    assert seconds["stopped"] == pytest.approx(100 + 3 + 9)
    assert seconds["start_up"] == pytest.approx(10 + 10 + 6 + 7)
    assert seconds["checkpoint"] == pytest.approx(1.5)
    assert seconds["productive"] == pytest.approx(10 + 9.5)


def test_redo_is_exact_between_logged_steps() -> None:
    events = [
        event(0, "started", 0),
        event(10, "training", 0),
        event(100, "resumed", 30, reached=77, reached_at=87),
        event(110, "training", 30),
    ]
    told = goodput(events, [], [line(60, 50)], progress(120, 40))
    assert told["redone_steps"] == 47
    assert checked(told)["redo"] == pytest.approx(47), "step 30 is interpolated between 0 and 50"


def test_a_damaged_checkpoint_costs_steps_of_several_starts() -> None:
    events = [
        event(0, "started", 0),
        event(0, "training", 0),
        event(20, "resumed", 10, reached=15, reached_at=15),
        event(20, "training", 10),
        event(40, "resumed", 5, reached=20, reached_at=30),
        event(40, "training", 5),
    ]
    told = goodput(events, [line(5, 5), line(15, 15), line(30, 20)], progress=progress(60, 25))
    assert told["redone_steps"] == (15 - 5) + (20 - 10)
    assert checked(told)["redo"] == pytest.approx(10 + 10)


def test_a_clean_stop_costs_no_step() -> None:
    events = [
        event(0, "started", 0),
        event(0, "training", 0),
        event(11, "checkpoint", 10, stall_seconds=1.0),
        event(11, "stopped", 10, signal="SIGTERM"),
        event(13, "something_else"),
        event(50, "resumed", 10, reached=10, reached_at=10),
        event(50, "training", 10),
    ]
    told = goodput(events, [line(10, 10), line(60, 20)], progress=progress(60, 20))
    seconds = checked(told)
    assert (told["redone_steps"], seconds["redo"], seconds["stopped"], seconds["checkpoint"]) == (0, 0, 39, 1)
    assert seconds["productive"] == pytest.approx(20)


def test_little_is_known() -> None:
    assert goodput([], [])["goodput"] is None
    assert goodput([], [line(3, 1)])["starts"] == 0
    assert goodput([event(0, "started", 0)], [])["goodput"] is None
    torn = [{"torn_line": "{"}, {"event": "started"}, event(0, "started", 0), event(5, "training", 0), {"time": 3}]
    told = goodput(torn, [{"step": 3}, line(15, 10)], torn)
    assert checked(told)["productive"] == pytest.approx(10)


def test_a_run_directory(tmp_path: Path) -> None:
    append_event(tmp_path, "started", step=0)
    append_event(tmp_path, "training", step=0)
    file = ProgressFile(tmp_path, 0)
    for step in range(1, 8):
        file.write(step)
    file.close()
    assert (goodput_of(tmp_path)["steps"], goodput_of(tmp_path)["starts"]) == (7, 1)
    (tmp_path / "metrics.jsonl").write_bytes(encode_line(line(1e9, 9)))
    assert goodput_of(tmp_path)["steps"] == 9, "a line says more than a file of progress that a crash left old"


def test_progress_is_the_last_step_and_when(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    file = ProgressFile(tmp_path, 12_345_678)
    before = read_progress(tmp_path)
    file.write(3)
    file.close()
    found = read_progress(tmp_path)
    assert before is not None
    assert found is not None
    assert (before.step, found.step) == (12_345_678, 3)
    assert before.time <= found.time < before.time + 600
    (tmp_path / PROGRESS_NAME).write_bytes(b"\0" * 42)
    assert read_progress(tmp_path) is None


def test_moments_are_what_was_written() -> None:
    assert moment(utc_time(START + 0.25)) == START + 0.25
    assert [moment(value) for value in (None, 5, "soon")] == [None, None, None]
