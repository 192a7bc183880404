"""Jobs on a real SLURM that are pushed aside, or lose a rank or a node: the run ends as it would, with no help."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.runs import write_config
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import (
    OVERRIDES,
    SCRIPT,
    SIZES,
    SLURM_PROOF,
    assert_undisturbed,
    events,
    last_step,
    wait_for_end,
    wait_until,
)

OFTEN_SAVED = ["--checkpoint.every_steps", "20"]

pytestmark = SLURM_PROOF


def test_an_urgent_job_comes_first(cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, cwd=tmp_path)
    wait_until(lambda: last_step(run) >= 10, "step 10")
    hold(run)
    until_over = ["--wrap=touch begun; while [ ! -e over ]; do sleep 0.2; done"]
    cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", *until_over, cwd=tmp_path)
    wait_until((tmp_path / "begun").exists, "the urgent job")
    assert cluster.job(job)["JobState"] == "PENDING"
    (tmp_path / "over").touch()
    assert wait_for_end(cluster, job, tmp_path / f"pretrain-{job}.log") == "COMPLETED"
    story = events(run, "started", "stopped", "resumed", "finished")
    assert [event["event"] for event in story] == ["started", "stopped", "resumed", "finished"]
    assert_undisturbed(run, undisturbed)


def test_a_killed_rank(cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, *OFTEN_SAVED, cwd=tmp_path)
    wait_until(lambda: last_step(run) >= 25, "step 25")
    os.kill(events(run, "started")[0]["process"], signal.SIGKILL)
    log = tmp_path / f"pretrain-{job}.log"
    assert wait_for_end(cluster, job, log) == "COMPLETED"
    # On a busy machine SLURM may end the step of the job's first start only now, which has the same number: once more.
    restarts = int(cluster.job(job)["Restarts"])
    assert restarts >= 1
    assert "the ranks failed with status" in log.read_text()
    assert [(event["rank"], event["event"]) for event in events(run, "failed", "lost_rank")] == [(1, "lost_rank")]
    assert [event["job_restarts"] for event in events(run, "started", "resumed")] == list(range(restarts + 1))
    assert events(run, "resumed")[0]["step"] >= 20
    assert_undisturbed(run, undisturbed)


@pytest.mark.parametrize("daemon_only", [False, True])
def test_a_lost_node(
    daemon_only: bool, cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Its daemon alone leaves the ranks there as they are: SLURM takes them for dead and starts the job again."""
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, *OFTEN_SAVED, cwd=tmp_path)
    wait_until(lambda: last_step(run) >= 25, "step 25")
    if daemon_only:
        hold(run)
    cluster.lose("n2", daemon_only)
    cluster.bring_back("n2")
    assert wait_for_end(cluster, job, tmp_path / f"pretrain-{job}.log") == "COMPLETED"
    assert int(cluster.job(job)["Restarts"]) >= 1
    assert len(events(run, "resumed")) >= 1
    assert_undisturbed(run, undisturbed)


def hold(run_directory: Path) -> None:
    """Stop rank 0 and with it all: else the run would be over before SLURM has done anything, which continues it."""
    os.kill(events(run_directory, "started")[0]["process"], signal.SIGSTOP)
