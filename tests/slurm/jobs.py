"""Runs as jobs of the cluster: waiting for what they write, reading how it went."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import column
from tests.slurm.cluster import Cluster, missing_requirement

REASON = missing_requirement()
NUM_STEPS = 150
OVERRIDES = ["--train.strategy", "zero1", "--train.steps", str(NUM_STEPS), "--checkpoint.every_steps", str(NUM_STEPS)]

SCRIPT = str(Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch")
SIZES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=2000"]

SLURM_PROOF = [
    pytest.mark.proof,
    pytest.mark.timeout(900),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
"""Marks of a test that needs the cluster."""


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


def assert_undisturbed(run_directory: Path, undisturbed: Path) -> None:
    """Every step once and in order, on the same batches, with the same numbers to the bit."""
    assert column(run_directory, "step") == list(range(1, NUM_STEPS + 1))
    for name in ("batch_digest", "loss", "grad_norm"):
        assert column(run_directory, name) == column(undisturbed, name), name


def wait_for_end(cluster: Cluster, job: int, log: Path) -> str:
    """The state in which the job ended."""
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: cluster.job(job)["JobState"] in ended, f"the end of job {job}")
    print(log.read_text())  # shown by pytest if the test fails
    return cluster.job(job)["JobState"]
