"""`slurm/train.sbatch` on a real SLURM of two nodes: interrupted runs go on by themselves, exactly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import column, tiny_corpus, write_config
from tests.slurm.cluster import Cluster, missing_requirement

REPOSITORY = Path(__file__).resolve().parent.parent.parent
REASON = missing_requirement()
NUM_STEPS = 150
OVERRIDES = ["--train.strategy", "zero1", "--train.steps", str(NUM_STEPS), "--checkpoint.every_steps", str(NUM_STEPS)]
SIZES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=2000"]
SCRIPT = str(REPOSITORY / "slurm" / "train.sbatch")

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.2)
    return value


def last_step(run_directory: Path) -> int:
    """Last whole line of the metrics of a run that is going on; 0 if there is none."""
    path = run_directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def events(run_directory: Path, *names: str) -> list[dict[str, Any]]:
    path = run_directory / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] in names]


def wait_for_end(cluster: Cluster, job: int, log: Path) -> str:
    """The state in which the job ended."""
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: cluster.job(job)["JobState"] in ended, f"the end of job {job}")
    print(log.read_text())  # shown by pytest if the test fails
    return cluster.job(job)["JobState"]


def test_signalled_and_requeued_job_equals_an_undisturbed_run(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    undisturbed = write_config(tmp_path, corpus, "undisturbed")
    command = [sys.executable, "-m", "pipeline.cli", "launch", "torchrun", str(undisturbed), "--processes", "2"]
    subprocess.run([*command, *OVERRIDES], cwd=REPOSITORY, check=True)

    config = write_config(tmp_path, corpus, "disturbed")
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, cwd=tmp_path)
    wait_until(lambda: last_step(run) >= 10, "step 10")
    cluster.on("login", "scancel", "--signal=USR1", str(job))
    first = wait_until(lambda: events(run, "stopped"), "the stop after SIGUSR1")[0]["step"]
    wait_until(lambda: last_step(run) >= first + 10, "10 steps after the requeue")
    cluster.on("login", "scontrol", "requeue", str(job))
    log = tmp_path / f"pretrain-{job}.log"
    wait_until(lambda: len(events(run, "stopped")) == 2, "the stop after SIGTERM")
    wait_until(lambda: len(events(run, "resumed")) == 2, "the second resume")

    assert wait_for_end(cluster, job, log) == "COMPLETED"
    assert cluster.job(job)["Restarts"] == "2"
    story = events(run, "started", "stopped", "resumed", "finished")
    assert [event["event"] for event in story] == ["started", "stopped", "resumed", "stopped", "resumed", "finished"]
    assert [event.get("signal") for event in story if event["event"] == "stopped"] == ["SIGUSR1", "SIGTERM"]
    assert story[1]["step"] == story[2]["step"] < story[3]["step"] == story[4]["step"] < NUM_STEPS
    assert column(run, "step") == list(range(1, NUM_STEPS + 1))
    assert column(run, "loss") == column(undisturbed.with_suffix(""), "loss")
    assert [f"start {number}:" in log.read_text() for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_run_that_fails_is_not_requeued(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    four_ranks = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--mem=2000"]
    overrides = ["--train.strategy", "ddp", "--train.global_batch_size", "3"]
    job = cluster.sbatch(*four_ranks, SCRIPT, str(config), *overrides, cwd=tmp_path)
    log = tmp_path / f"pretrain-{job}.log"
    assert wait_for_end(cluster, job, log) == "FAILED"
    assert cluster.job(job)["Restarts"] == "0"
    assert "4 ranks share 3 rows a step" in log.read_text()
    assert "not requeued" in log.read_text()


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, cwd=tmp_path)
    wait_until(lambda: last_step(run) >= 5, "step 5")
    cluster.on("login", "scancel", str(job))
    stopped = wait_until(lambda: events(run, "stopped"), "the stop after scancel")[0]["step"]
    assert (run / "checkpoints" / f"step-{stopped:08d}" / "meta.json").exists()
    wait_until(lambda: cluster.on("login", "squeue", "--noheader") == "", "an empty queue")
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert cluster.job(job)["Restarts"] == "0"
