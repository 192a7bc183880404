"""`pretrain launch requeue`: which jobs go back into the queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.launch.requeue import num_futile_starts, requeue, run_events, was_stopped


def write_events(run_directory: Path, *names: str) -> None:
    run_directory.mkdir(exist_ok=True)
    (run_directory / "events.jsonl").write_text("".join(f'{{"event": "{name}", "step": 3}}\n' for name in names))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"run_directory: {tmp_path}/run\ndata: {{corpus: {tmp_path}/corpus}}\n")
    return path


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for squeue, which says what `state` holds, and scontrol, which notes its arguments in `requeued`."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {
        "squeue": 'echo "$@" > "$0.called"; cat "$0.state"',
        "scontrol": 'echo "$@" > "$0.called"',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    (commands / "squeue.state").write_text("RUNNING\n")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    return commands


@pytest.mark.parametrize(
    ("names", "stopped"),
    [
        (["started", "checkpoint", "stopped"], True),
        (["started", "stopped", "resumed", "checkpoint", "stopped", "export"], True),
        (["started", "stopped", "resumed", "finished"], False),
        (["started", "stopped", "resumed"], False),  # the ranks were killed: SLURM knows better than the run
        (["started", "finished", "export"], False),
    ],
)
def test_what_happened_last_decides(names: list[str], stopped: bool, tmp_path: Path) -> None:
    write_events(tmp_path, *names)
    assert was_stopped(run_events(tmp_path)) is stopped


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    write_events(tmp_path, "started", "stopped")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "resu')
    assert was_stopped(run_events(tmp_path))


def test_a_run_that_never_started(config: Path) -> None:
    with pytest.raises(UserError, match=r"no run was started in .*/run, so none can be continued"):
        requeue(config, environ={"SLURM_JOB_ID": "17"})


def start(name: str = "resumed", restarts: int = 0, job: str = "17") -> dict[str, Any]:
    return {"event": name, "job": job, "job_restarts": restarts}


SAVED, STOPPED, FINISHED = ({"event": name} for name in ("checkpoint", "stopped", "finished"))


@pytest.mark.parametrize(
    ("events", "restarts", "expected"),
    [
        ([], 0, None),
        ([start("started", job="16")], 0, None),
        ([start("started"), FINISHED], 0, None),
        ([start("started")], 0, 1),
        ([start("started"), SAVED], 0, 0),
        ([start("started"), SAVED], 2, 2),  # twice it did not come so far as to say that it started
        ([start("started"), STOPPED, start(restarts=1)], 1, 1),
        ([start("started"), SAVED, start(restarts=1), SAVED, start(restarts=2), start(restarts=3)], 3, 2),
        ([start("started", job="16"), start()], 0, 2),
    ],
)
def test_starts_that_saved_nothing(events: list[dict[str, Any]], restarts: int, expected: int | None) -> None:
    assert num_futile_starts(events, "17", restarts) == expected


@pytest.mark.parametrize(
    ("num_starts", "max_restarts", "goes_on", "told"),
    [
        (3, 3, True, "job 17 goes back into the queue"),
        (
            4,
            3,
            False,
            "the ranks have failed, 4 times in a row with nothing new saved (--max-restarts 3); not requeued",
        ),
        (1, 0, False, "--max-restarts is 0; not requeued"),
        (0, 3, False, "the ranks have failed before the run began in this job; not requeued"),
    ],
)
def test_ranks_that_failed(
    num_starts: int,
    max_restarts: int,
    goes_on: bool,
    told: str,
    config: Path,
    slurm: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (config.parent / "run").mkdir()
    lines = [json.dumps(start(restarts=number)) for number in range(num_starts)]
    (config.parent / "run/events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    environ = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(num_starts - 1)}
    assert requeue(config, environ=environ, max_restarts=max_restarts) is goes_on
    assert (slurm / "scontrol.called").exists() is goes_on
    assert told in capsys.readouterr().out


def test_a_stopped_run_goes_back_into_the_queue(config: Path, slurm: Path) -> None:
    write_events(config.parent / "run", "started", "stopped")
    assert requeue(config, environ={"SLURM_JOB_ID": "17"})
    assert (slurm / "scontrol.called").read_text() == "requeue 17\n"


def test_a_task_of_an_array_requeues_itself_alone(config: Path, slurm: Path) -> None:
    write_events(config.parent / "run", "started", "stopped")
    # The array's last task: its own number is that of the whole array.
    environ = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "4"}
    assert requeue(config, environ=environ)
    assert (slurm / "scontrol.called").read_text() == "requeue 17_4\n"
    assert "--jobs=17_4 " in (slurm / "squeue.called").read_text()


def test_overrides_name_the_run_directory(config: Path, slurm: Path) -> None:
    write_events(config.parent / "other", "started", "stopped")
    assert requeue(config, ["--run_directory", str(config.parent / "other")], {"SLURM_JOB_ID": "17"})


def test_a_finished_run_does_not(config: Path, slurm: Path) -> None:
    write_events(config.parent / "run", "started", "finished")
    assert not requeue(config, environ={"SLURM_JOB_ID": "17"})
    assert not (slurm / "scontrol.called").exists()


def test_a_job_that_slurm_is_ending_does_not(config: Path, slurm: Path) -> None:
    write_events(config.parent / "run", "started", "stopped")
    (slurm / "squeue.state").write_text("COMPLETING\n")
    assert not requeue(config, environ={"SLURM_JOB_ID": "17"})
    assert not (slurm / "scontrol.called").exists()


def test_outside_a_job(config: Path) -> None:
    with pytest.raises(UserError, match=r"SLURM_JOB_ID is not set: .* works only inside a SLURM job"):
        requeue(config, environ={})


def test_slurm_refuses(config: Path, slurm: Path) -> None:
    write_events(config.parent / "run", "started", "stopped")
    (slurm / "scontrol").write_text("#!/bin/sh\necho Job is not requeuable >&2; exit 1\n")
    with pytest.raises(UserError, match="`scontrol requeue 17` failed: Job is not requeuable"):
        requeue(config, environ={"SLURM_JOB_ID": "17"})


def test_without_slurm(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_events(config.parent / "run", "started", "stopped")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="squeue is not on PATH"):
        requeue(config, environ={"SLURM_JOB_ID": "17"})
