"""The body of `slurm/train.sbatch`, run by bash with stand-ins for SLURM's commands (the real: `tests/slurm/`)."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "slurm" / "train.sbatch"

STAND_INS = {
    "scontrol": "printf 'n1\\nn2\\n'",
    "squeue": 'echo "$@" > squeue.called; cat squeue.answer',
    "srun": 'env > srun.environment; printf "%s\\n" "$@" > srun.called; exit "$(cat srun.status)"',
    "pretrain": 'echo "$@" > pretrain.called',
    "hostname": "echo n1",
    "getent": 'test "$2" = n1 && cat own.address || echo "10.0.0.2 STREAM n2"',
    "ip": 'echo "$5 dev eth7 src 10.0.0.1 uid 0 "',
}
JOB = {
    "SLURM_JOB_ID": "70017",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_CPUS_PER_TASK": "6",
}


class Host:
    """A folder that is a node's PATH and working directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name, text in STAND_INS.items():
            (directory / name).write_text(f"#!/bin/sh\n{text}\n")
            (directory / name).chmod(0o755)
        self.write("srun.status", "0")
        self.write("squeue.answer", "2026-03-01T12:00:00\n")
        self.write("own.address", "10.0.0.1 STREAM n1\n")

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    def run(self, *arguments: str, script: Path = SCRIPT, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{self.directory}:{os.environ['PATH']}", **JOB, **variables}
        return subprocess.run(
            ["bash", script, *arguments], cwd=self.directory, env=environ, capture_output=True, text=True, check=False
        )

    def task_environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.read("srun.environment").splitlines() if "=" in line)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_ranks_are_told_where_to_meet_and_when_it_ends(host: Host) -> None:
    done = host.run("my run.yaml", "--seed", "3")
    assert done.returncode == 0, done.stderr
    words = ["--kill-on-bad-exit=1", "pretrain", "train", "my run.yaml", "--seed", "3"]
    assert host.read("srun.called").splitlines() == words
    tasks = host.task_environment()
    assert (tasks["MASTER_ADDR"], tasks["MASTER_PORT"], tasks["SRUN_CPUS_PER_TASK"]) == ("n1", "30017", "6")
    assert float(tasks["SLURM_JOB_END_TIME"]) == datetime(2026, 3, 1, 12).timestamp()
    assert "GLOO_SOCKET_IFNAME" not in tasks
    assert host.read("pretrain.called") == "launch requeue my run.yaml --seed 3\n"
    assert "job 70017, start 1: 4 tasks on n[1-2], ranks meet at n1:30017" in done.stdout


def test_a_task_of_an_array_asks_for_itself(host: Host) -> None:
    done = host.run("run.yaml", SLURM_ARRAY_JOB_ID="70017", SLURM_ARRAY_TASK_ID="2", SLURM_RESTART_COUNT="1")
    assert "--jobs=70017_2 " in host.read("squeue.called")
    assert "job 70017_2, start 2:" in done.stdout


@pytest.mark.parametrize("answer", ["", "N/A\n", "NONE\n"])
def test_a_job_without_an_end(answer: str, host: Host) -> None:
    host.write("squeue.answer", answer)
    assert host.run("run.yaml").returncode == 0
    assert "SLURM_JOB_END_TIME" not in host.task_environment()


def test_gloo_is_led_past_a_host_name_that_is_the_loopback(host: Host) -> None:
    host.write("own.address", "127.0.1.1 STREAM n1\n")
    host.run("run.yaml")
    assert host.task_environment()["GLOO_SOCKET_IFNAME"] == "eth7"
    assert "NCCL_SOCKET_IFNAME" not in host.task_environment()
    host.run("run.yaml", GLOO_SOCKET_IFNAME="ib0")
    assert host.task_environment()["GLOO_SOCKET_IFNAME"] == "ib0"
    host.run("run.yaml", SLURM_JOB_NUM_NODES="1")
    assert "GLOO_SOCKET_IFNAME" not in host.task_environment()


def test_an_unknown_interface_stays_unknown_and_shows_no_variable(host: Host) -> None:
    host.write("own.address", "127.0.1.1 STREAM n1\n")
    host.write("ip", "#!/bin/sh\nexit 1\n")
    done = host.run("run.yaml", WANDB_API_KEY="a-secret")
    assert done.returncode == 0
    assert "GLOO_SOCKET_IFNAME" not in host.task_environment()
    assert "a-secret" not in done.stdout + done.stderr


def test_ranks_that_fail(host: Host) -> None:
    host.write("srun.status", "3")
    done = host.run("run.yaml", "--seed", "3")
    assert done.returncode == 3
    assert "the ranks failed with status 3" in done.stderr
    assert host.read("pretrain.called") == "launch requeue --max-restarts 3 run.yaml --seed 3\n"


def test_a_job_of_a_chain_leaves_the_rest_to_the_next(host: Host, tmp_path: Path) -> None:
    script = tmp_path / "chained.sbatch"
    script.write_text(SCRIPT.read_text().replace("# End of the settings.", "chained=yes"))
    assert host.run("run.yaml", script=script).returncode == 0
    host.write("srun.status", "3")
    assert host.run("run.yaml", script=script).returncode == 3
    assert not (host.directory / "pretrain.called").exists()


def test_what_is_missing(host: Host) -> None:
    done = host.run()
    assert (done.returncode, done.stderr) == (2, "usage: sbatch SCRIPT CONFIG [--key value ...]\n")
    (host.directory / "pretrain").unlink()
    path = os.pathsep.join(p for p in ("/usr/bin", "/bin"))
    done = host.run("run.yaml", PATH=f"{host.directory}:{path}")
    assert done.returncode == 2
    assert "pretrain is not on PATH" in done.stderr
