"""`pretrain status`: the state of a run from its files, SLURM's word for the job, its process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.monitor.events import append_event
from pipeline.monitor.json_lines import last_record, moment
from pipeline.monitor.status import run_status

HERE = {"host": platform.node(), "process": os.getpid(), "world_size": 2, "total_steps": 100}


def unknown_job(job: str) -> str:
    raise UserError(f"no job {job}")


def write_run(directory: Path, *events: str, **facts: Any) -> Path:
    for number, event in enumerate(events):
        append_event(directory, event, step=10 * number, **(HERE | facts if event in ("started", "resumed") else {}))
    return directory


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, "started", "checkpoint", "stopped", "resumed", "checkpoint", "exported", job="17")
    (tmp_path / "metrics.jsonl").write_text('{"step": 40, "time": "2999"}\n{"step": 57, "time": "3000"}\n{"step": 5')
    facts = run_status(tmp_path, lambda job: {"17": "RUNNING"}[job])
    expected = {"state": "running", "step": 57, "saved_step": 40, "total_steps": 100, "restarts": 1, "job": "17"}
    assert {name: facts[name] for name in expected} == expected
    assert (facts["ranks"], facts["host"], facts["process"]) == (2, platform.node(), os.getpid())
    assert facts["last_news"] == "3000"


@pytest.mark.parametrize(
    ("events", "queue", "state"),
    [
        (["started", "finished"], "RUNNING", "finished"),
        (["started", "stopped"], "COMPLETED", "stopped"),
        (["started", "stopped"], "PENDING", "queued"),
        (["started", "stopped"], "RUNNING", "starting"),
        (["started"], "PENDING", "queued"),  # preempted at once, or its node failed
        (["started", "stopped", "resumed"], "RUNNING", "running"),
        (["started", "stopped", "resumed"], "COMPLETING", "running"),
        (["started"], "FAILED", "died"),
    ],
)
def test_states_of_a_job(events: list[str], queue: str, state: str, tmp_path: Path) -> None:
    write_run(tmp_path, *events, job="17_2", host="elsewhere")
    assert run_status(tmp_path, lambda job: queue)["state"] == state


def test_states_of_a_process(tmp_path: Path) -> None:
    assert run_status(write_run(tmp_path / "a", "started"), unknown_job)["state"] == "running"
    dead = write_run(tmp_path / "b", "started", process=ended_process())
    assert run_status(dead, unknown_job)["state"] == "died"
    elsewhere = write_run(tmp_path / "c", "started", host="elsewhere")
    assert run_status(elsewhere, unknown_job)["state"] == "unknown"


def test_a_job_that_slurm_has_forgotten_is_judged_by_its_process(tmp_path: Path) -> None:
    facts = run_status(write_run(tmp_path, "started", job="17", process=ended_process()), unknown_job)
    assert (facts["state"], facts["job_state"]) == ("died", None)


def test_goodput_and_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed after step 7, of which 5 were saved; then 3 steps more."""

    def at(second: int) -> str:
        return f"2026-01-01T00:00:{second:02d}.000+00:00"

    lines = [
        {"time": at(4), "event": "started", "step": 0, "began": at(0), **HERE},
        {"time": at(6), "event": "training", "step": 0},
        {"time": at(16), "event": "checkpoint", "step": 5, "stall_seconds": 5.0, "seconds": 9.0},
        {"time": at(30), "event": "resumed", "step": 5, "began": at(25), "reached": 7, "reached_at": at(18), **HERE},
        {"time": at(32), "event": "training", "step": 5},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = [{"time": at(11), "step": 5, "seconds_per_step": 1.0}, {"time": at(40), "step": 6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (tmp_path / "progress").write_bytes(b"%020d %021.3f\n" % (8, moment(at(50)) or 0))
    facts = run_status(tmp_path, unknown_job)
    assert (facts["step"], facts["last_news"], facts["redone_steps"], facts["restarts"]) == (8, at(50), 2, 1)
    assert (facts["wall_seconds"], facts["lost_seconds"]["checkpoint"]) == (50, 5)
    assert (facts["lost_seconds"]["stopped"], facts["lost_seconds"]["start_up"]) == (7, 13)
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    (goodput,) = (line for line in shown if line.startswith("goodput"))
    assert goodput.endswith(f" {facts['goodput']:.1%} of 0:50 since the first start")
    (lost,) = (line for line in shown if line.startswith("time lost to"))
    assert "start up 26.0%, stopped 14.0%, checkpoint 10.0%" in lost
    assert "steps computed again  2" in shown


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no run \(no start in events.jsonl\). Give the run_directory of"):
        run_status(tmp_path, unknown_job)


def test_the_last_line_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_record(path) is None
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(20_000)) + '{"st')
    assert last_record(path) == {"step": 19_999}
    path.write_text("x" * 100)
    assert last_record(path) is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "started", "checkpoint", "finished")
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "state                 finished\n" in shown
    assert "job" not in shown
    assert main(["status", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["step"], facts["saved_step"], facts["job"]) == ("finished", 20, 10, None)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path, "started")
    program = (
        "import sys; from pipeline.cli import main; main(['status', sys.argv[1]]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
