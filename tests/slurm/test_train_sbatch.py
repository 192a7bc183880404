"""`slurm/train.sbatch` on a real SLURM of two nodes: interrupted runs go on by themselves, exactly."""

from __future__ import annotations

from pathlib import Path

from tests.runs import write_config
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import (
    NUM_STEPS,
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

pytestmark = SLURM_PROOF


def test_signalled_and_requeued_job_equals_an_undisturbed_run(
    cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, "--monitor.wandb", "offline", cwd=tmp_path)
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
    assert_undisturbed(run, undisturbed)
    folders = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert {name.rpartition("-")[2] for name in folders} == {(run / "wandb_id").read_text().strip()}
    assert len(folders) == 3
    assert [f"start {number}:" in log.read_text() for number in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_run_that_fails_is_not_requeued(cluster: Cluster, slurm_corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, slurm_corpus)
    four_ranks = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--mem=2000"]
    overrides = ["--train.strategy", "ddp", "--train.global_batch_size", "3"]
    job = cluster.sbatch(*four_ranks, SCRIPT, str(config), *overrides, cwd=tmp_path)
    log = tmp_path / f"pretrain-{job}.log"
    assert wait_for_end(cluster, job, log) == "FAILED"
    assert cluster.job(job)["Restarts"] == "0"
    assert "4 ranks share 3 rows a step" in log.read_text()
    assert "not requeued" in log.read_text()


def test_a_cancelled_job_saves_and_stays_cancelled_until_it_is_submitted_again(
    cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    job = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, cwd=tmp_path)
    wait_until(lambda: last_step(run) >= 5, "step 5")
    cluster.on("login", "scancel", str(job))
    stopped = wait_until(lambda: events(run, "stopped"), "the stop after scancel")[0]["step"]
    assert (run / "checkpoints" / f"step-{stopped:08d}" / "meta.json").exists()
    wait_until(lambda: cluster.on("login", "squeue", "--noheader") == "", "an empty queue")
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert cluster.job(job)["Restarts"] == "0"
    again = cluster.sbatch(*SIZES, SCRIPT, str(config), *OVERRIDES, cwd=tmp_path)
    assert wait_for_end(cluster, again, tmp_path / f"pretrain-{again}.log") == "COMPLETED"
    assert [event["step"] for event in events(run, "resumed")] == [stopped]
    assert_undisturbed(run, undisturbed)
