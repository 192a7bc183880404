"""`pretrain launch slurm` on a real SLURM of two nodes: written scripts, time limits, chains, job arrays."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.monitor.events import append_event
from tests.runs import column, write_config
from tests.slurm.cluster import LOGIN, Cluster
from tests.slurm.jobs import (
    OVERRIDES,
    SLURM_PROOF,
    assert_undisturbed,
    events,
    last_step,
    wait_for_end,
    wait_until,
)

PRETRAIN = [sys.executable, "-m", "pipeline.cli"]
ONE_RANK_A_NODE = ["--nodes", "2", "--gpus-per-node", "1", "--cpus-per-task", "1", "--mem", "2000"]

pytestmark = SLURM_PROOF


def launch(cluster: Cluster, config: Path, *arguments: str) -> dict[str, Any]:
    """Call `pretrain launch slurm` on the login node: the script, the numbers of the jobs."""
    command = [*PRETRAIN, "launch", "slurm", str(config), *OVERRIDES, *arguments, "--json"]
    facts: dict[str, Any] = json.loads(cluster.on(LOGIN, *command, cwd=config.parent))
    return facts


def test_a_written_script_on_two_nodes_with_two_ranks_each(
    cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, slurm_corpus, "my run")
    run = config.with_suffix("")
    sizes = ["--nodes", "2", "--gpus-per-node", "2", "--cpus-per-task", "1", "--mem", "4000", "--time", "10"]
    extras = ["--partition", "gpu", "--interface", "eth0", "--local-cache", "$CACHE", "--sbatch=--comment=a b"]
    setup = ["--setup", f"export CACHE={tmp_path}/cache"]
    (job,) = launch(cluster, config, *sizes, *extras, *setup, "--submit")["jobs"]
    assert wait_for_end(cluster, job, tmp_path / f"my run-{job}.log") == "COMPLETED"
    (started,) = events(run, "started")
    assert (started["world_size"], started["host"], started["job"]) == (4, "n1", str(job))
    assert column(run, "batch_digest") == column(undisturbed, "batch_digest")
    assert column(run, "loss") == pytest.approx(column(undisturbed, "loss"), rel=1e-3)  # sums of four ranks, not two
    shown = json.loads(cluster.on(LOGIN, *PRETRAIN, "status", str(run), "--json"))
    assert (shown["state"], shown["job"], shown["job_state"], shown["restarts"]) == (
        *("finished", str(job), "COMPLETED", 0),
    )


def test_a_job_at_its_time_limit_goes_on_after_the_requeue(
    cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    margin = ["--checkpoint.seconds_before_time_limit", "20"]
    script = Path(launch(cluster, config, *ONE_RANK_A_NODE, "--time", "1", *margin)["script"])
    with_signal = script.read_text()
    script.write_text(with_signal.replace("#SBATCH --signal=USR1@20\n", ""))  # the run has to look at the clock itself
    assert script.read_text() != with_signal
    job = cluster.sbatch(str(script), cwd=tmp_path)
    wait_until(lambda: last_step(run), "the first step")
    rank_0 = events(run, "started")[0]["process"]
    os.kill(rank_0, signal.SIGSTOP)  # on a fast machine the run would be over before its time
    end_time = datetime.fromisoformat(cluster.job(job)["EndTime"]).timestamp()
    wait_until(lambda: time.time() > end_time - 20, "the last 20 seconds of the job")
    os.kill(rank_0, signal.SIGCONT)

    assert wait_for_end(cluster, job, tmp_path / f"run-{job}.log") == "COMPLETED"
    story = events(run, "started", "stopped", "resumed", "finished")
    stops = [event for event in story if event["event"] == "stopped"]
    assert stops
    assert {(event["signal"], event["at_time_limit"]) for event in stops} == {(None, True)}
    assert [event["event"] for event in story] == ["started", *["stopped", "resumed"] * len(stops), "finished"]
    assert cluster.job(job)["Restarts"] == str(len(stops))
    assert_undisturbed(run, undisturbed)


def test_the_next_job_of_a_chain_goes_on(
    cluster: Cluster, slurm_corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, slurm_corpus)
    run = config.with_suffix("")
    first, second = launch(cluster, config, *ONE_RANK_A_NODE, "--time", "10", "--chain", "2", "--submit")["jobs"]
    wait_until(lambda: last_step(run) >= 5, "step 5")
    assert cluster.job(second)["JobState"] == "PENDING"
    cluster.on(LOGIN, "scancel", "--signal=USR1", str(first))
    assert wait_for_end(cluster, second, tmp_path / f"run-{second}.log") == "COMPLETED"
    assert [cluster.job(job)["Restarts"] for job in (first, second)] == ["0", "0"]
    story = [(event["event"], event.get("job")) for event in events(run, "started", "stopped", "resumed", "finished")]
    assert story == [("started", str(first)), ("stopped", None), ("resumed", str(second)), ("finished", None)]
    assert_undisturbed(run, undisturbed)


def test_a_task_of_a_job_array_requeues_itself_alone(cluster: Cluster, slurm_corpus: Path, tmp_path: Path) -> None:
    for name in ("0", "1"):
        append_event(write_config(tmp_path, slurm_corpus, name).with_suffix(""), "stopped", step=1)
    (tmp_path / "array.sbatch").write_text(
        "#!/usr/bin/env bash\n"
        'echo "$SLURM_JOB_ID $SLURM_ARRAY_JOB_ID" >> "$SLURM_ARRAY_TASK_ID.ids"\n'
        "if [ $SLURM_ARRAY_TASK_ID = 0 ]; then while [ ! -e over ]; do sleep 0.2; done; exit; fi\n"
        f'[ -n "${{SLURM_RESTART_COUNT:-}}" ] || exec {" ".join(PRETRAIN)} launch requeue 1.yaml\n'
    )
    array = cluster.sbatch("--array=0-1", "--requeue", "--mem=500", str(tmp_path / "array.sbatch"), cwd=tmp_path)
    ids = tmp_path / "1.ids"
    wait_until(lambda: ids.exists() and ids.read_text().count("\n") == 2, "the second start of task 1")
    assert ids.read_text() == f"{array} {array}\n" * 2  # its own number is that of the whole array
    (tmp_path / "over").touch()
    wait_until(lambda: cluster.on(LOGIN, "squeue", "--noheader") == "", "an empty queue")
    assert len((tmp_path / "0.ids").read_text().splitlines()) == 1
