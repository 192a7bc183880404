"""`pretrain launch slurm`: the job of a run, its script, its submission with a stand-in for sbatch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.launch.sbatch import JobOptions
from pipeline.launch.slurm import Job, make_job, submit, write_script

JOB = JobOptions(nodes=2, time="1:00:00", ranks_per_node=2, gpus_per_node=2)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("run.yaml")
    path.write_text("run_directory: runs/100%\ndata: {corpus: corpus}\ntrain: {global_batch_size: 8}\n")
    return path


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that numbers jobs from 41 and notes its arguments; the third job of a folder is refused."""
    commands = tmp_path / "bin"
    commands.mkdir()
    text = 'echo "$@" >> "$0.called"; n=$(wc -l < "$0.called"); test $n -lt 3 || { echo too many >&2; exit 1; }'
    (commands / "sbatch").write_text(f'#!/bin/sh\n{text}; echo "$((40 + n));cluster"\n')
    (commands / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    return commands / "sbatch.called"


def test_what_follows_from_the_run(config: Path, tmp_path: Path) -> None:
    job = make_job(config, ["--train.steps", "5"], JOB)
    assert job.script == Path("runs/100%.sbatch")
    for line in ("--job-name=100%", f"--chdir={tmp_path}", "--signal=USR1@120", "--output=runs/100%%-%j.log"):
        assert f"#SBATCH {line}\n" in job.text
    assert "\nset -- run.yaml --train.steps 5 " in job.text
    assert "chained=yes" not in job.text
    assert "\nmax_restarts=3\n" in job.text
    assert "\nchained=yes\n" in make_job(config, [], JOB, chain=2).text


def test_the_signal_comes_when_the_run_would_stop(config: Path) -> None:
    job = make_job(config, ["--checkpoint.seconds_before_time_limit", "300.5"], JOB)
    assert "#SBATCH --signal=USR1@301\n" in job.text
    assert "#SBATCH --signal" not in make_job(config, ["--checkpoint.seconds_before_time_limit", "0"], JOB).text


def test_caches_of_the_node_unless_the_user_says_otherwise(config: Path) -> None:
    overrides = ["--train.compile_cache", "/fast"]
    text = make_job(config, overrides, JOB, local_cache="$TMPDIR/pretrain/").text
    caches = "--data.cache.directory '$TMPDIR/pretrain/shards' --train.compile_cache '$TMPDIR/pretrain/compiled'"
    assert f"set -- run.yaml {caches} --train.compile_cache /fast" in text


@pytest.mark.parametrize(
    ("options", "chain", "message"),
    [
        (JobOptions(nodes=0, time="60", ranks_per_node=1), 1, "--nodes is 0; give at least 1"),
        (
            JobOptions(nodes=1, time="60", ranks_per_node=1, gpus_per_node=-1),
            1,
            "--gpus-per-node is -1; give at least 0",
        ),
        (JobOptions(nodes=1, time="60", ranks_per_node=0), 1, "--tasks-per-node is 0; give at least 1"),
        (JobOptions(nodes=1, time="60", ranks_per_node=1, cpus_per_task=0), 1, "--cpus-per-task is 0; give at least 1"),
        (JOB, 0, "--chain is 0; give at least 1"),
        (JobOptions(nodes=3, time="60", ranks_per_node=3), 1, "9 ranks share 8 rows a step"),
        (
            JobOptions(nodes=1, time="2", ranks_per_node=1),
            1,
            r"--time is 2, but the run stops 120 s before its end \(checkpoint.seconds_before_time_limit\): no step",
        ),
    ],
)
def test_jobs_that_could_not_start(options: JobOptions, chain: int, message: str, config: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_job(config, [], options, chain=chain)


def test_problems_of_the_config_are_told_before_the_queue(config: Path) -> None:
    with pytest.raises(UserError, match=r"seconds_before_time_limit: -1.0 must be a finite number, 0 or more"):
        make_job(config, ["--checkpoint.seconds_before_time_limit", "-1.0"], JOB)


def test_a_script_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a directory; give the path of a file"):
        write_script(Job(tmp_path, ""))


def test_a_chain_of_jobs(sbatch: Path) -> None:
    assert submit(Job(Path("a b.sbatch"), "", chain=2)) == [41, 42]
    assert sbatch.read_text() == "--parsable a b.sbatch\n--parsable --dependency=afterany:41 a b.sbatch\n"


def test_a_chain_that_breaks_names_what_waits_already(sbatch: Path) -> None:
    message = r"`sbatch .*afterany:42 x.sbatch` failed: too many In the queue already: 41, 42\."
    with pytest.raises(UserError, match=message):
        submit(Job(Path("x.sbatch"), "", chain=3))


def test_where_there_is_no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not on PATH: run this where SLURM's commands are"):
        submit(Job(Path("x.sbatch"), ""))


def test_the_command_writes_shows_and_submits(
    config: Path, sbatch: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["launch", "slurm", "run.yaml", "--nodes", "2", "--gpus-per-node", "0", "--time", "60", "--qos", "long"]
    options = ["--sbatch=--constraint=a&b", "--container", "x.sif", "--mount", "/data", "--train.steps", "7"]
    assert main([*command, *options]) == 0
    shown = capsys.readouterr().out
    script = Path("runs/100%.sbatch")
    assert shown == f"{script.read_text()}\nwritten to {script}\n"
    for text in ("#SBATCH --ntasks-per-node=1\n", "--qos=long\n", "'--constraint=a&b'\n", " --train.steps 7 "):
        assert text in shown
    assert f"srun+=(apptainer exec --bind {tmp_path},/data --pwd {tmp_path} x.sif)\n" in shown
    assert not sbatch.exists()
    assert main([*command, "--script", "other.sbatch", "--submit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"script": "other.sbatch", "jobs": [41]}
    assert sbatch.read_text() == "--parsable other.sbatch\n"
