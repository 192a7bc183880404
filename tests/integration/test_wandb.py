"""wandb's own client against a server on this machine: killed and restarted runs are one run, each step once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.data.loader import _Steps
from pipeline.monitor.wandb_files import last_offline_step, set_empty_files_aside
from tests.rankpool import RankPool
from tests.runs import write_config
from tests.unit.export.export_cases import make_corpus
from tests.wandb_server import WandbServer

KEY = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2"
LOG = """
import os, signal, sys, time
from pathlib import Path
from pipeline.monitor.sinks import JsonlSink
from pipeline.monitor.wandb_sink import WandbSink

run, first_step, last_step, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sinks = [JsonlSink(run), WandbSink(run, mode="auto", project="test")]
for sink in sinks:
    sink.start({"first_step": first_step}, {})
for step in range(first_step + 1, last_step + 1):
    for sink in sinks:
        sink.log({"step": step, "loss": 1.0 / step})
    if end == "kill" and step == last_step - 3:
        time.sleep(1.5)  # what comes later is not in wandb's file yet
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
for sink in sinks:
    sink.close()
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Of a user with a key, and with settings and caches of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    own = {"HOME": str(home), "WANDB_API_KEY": KEY, "WANDB_SILENT": "true"}
    return {**kept, **own, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent), **more}


def log_steps(run: Path, first_step: int, last_step: int, end: str, environ: dict[str, str]) -> None:
    run.mkdir(exist_ok=True)
    command = [sys.executable, "-c", LOG, str(run), str(first_step), str(last_step), end]
    status = subprocess.run(command, env=environ, timeout=120, check=False).returncode
    assert status == (-signal.SIGKILL if end == "kill" else 0)


def run_id_of(run: Path) -> str:
    return (run / "wandb_id").read_text().strip()


@pytest.mark.proof
def test_offline_starts_are_synced_into_one_run(tmp_path: Path) -> None:
    run, offline = tmp_path / "run", environment(tmp_path, WANDB_MODE="offline")
    log_steps(run, 0, 13, "kill", offline)
    log_steps(run, 5, 17, "kill", offline)  # from the checkpoint of step 5: some steps are computed again
    log_steps(run, 17, 20, "close", offline)  # from that of step 17, whose line wandb may lack
    name = run_id_of(run)
    files = sorted((run / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 3
    (run / "wandb" / files[0].parent.name.replace("20", "19", 1)).mkdir()
    empty = files[0].parent.with_name(files[0].parent.name.replace("20", "19", 1)) / files[0].name
    empty.write_bytes(files[0].read_bytes()[:20])  # of a start that was killed in its first second
    set_empty_files_aside(run, name)
    assert not empty.exists()
    assert last_offline_step(run, name) == 20
    with WandbServer() as server:
        command = [sys.executable, "-m", "wandb", "sync", str(run / "wandb")]
        synced = subprocess.run(
            command, env=environment(tmp_path, WANDB_BASE_URL=server.url), capture_output=True, text=True, timeout=120
        )
        assert synced.returncode == 0, synced.stderr
        assert list(server.history) == [name], synced.stderr
        assert server.steps(name) == list(range(1, 21))


@pytest.mark.proof
def test_an_online_run_that_was_killed_goes_on_as_the_same_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with WandbServer() as server:
        online = environment(tmp_path, WANDB_BASE_URL=server.url)
        log_steps(run, 0, 13, "kill", online)
        log_steps(run, 5, 20, "close", online)
        assert list(server.history) == [run_id_of(run)]
        assert server.steps(run_id_of(run)) == list(range(1, 21))


@pytest.mark.parametrize("num_bytes", [0, 7, 12, 40_000])
def test_files_without_records_are_set_aside(num_bytes: int, tmp_path: Path) -> None:
    assert last_offline_step(tmp_path, "abc") == 0
    file = tmp_path / "wandb/offline-run-20260101_000000-abc/run-abc.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes((b":W&B" + bytes(40_000))[:num_bytes])
    assert last_offline_step(tmp_path, "abc") == 0
    set_empty_files_aside(tmp_path, "abc")
    assert [path.name for path in file.parent.iterdir()] == ["run-abc.empty"]


def _leave_everything(config_path: str, log: str, url: str, exports: bool) -> list[Any]:
    """A run, its export, and starts that fail, of a user whose key the server refuses; all output goes to ``log``."""
    with open(log, "w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.pop("WANDB_MODE")
    os.environ |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url, "HOME": str(Path(config_path).parent)}
    short = ["--train.steps", "2", "--schedule.warmup_steps", "0"]
    train = ["train", config_path, "--monitor.wandb", "online"]
    run = Path(config_path).with_suffix("")
    ends: list[Any] = [main([*train, *short])]
    if exports:
        ends.append(main(["export", str(run), "--output", str(run / "hf")]))
    ends += [main([*train, "--data.corpus", "nowhere"]), main([*train, "--seed", "3"]), main([*train, "--sed", "3"])]

    def made(self: Any, steps: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Steps, "_made", made)
        with pytest.raises(OSError, match="Input/output"):
            main([*train, "--train.steps", "4", *short[2:]])
    return ends


@pytest.mark.parametrize("exports", [False, pytest.param(True, marks=pytest.mark.proof)])
def test_the_key_is_nowhere_in_what_a_run_leaves(exports: bool, rank_pool: RankPool, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", "bert")
    config = write_config(tmp_path, tmp_path / "corpus")
    log = tmp_path / "log"
    with WandbServer(refuses=True) as server:
        (ends,) = rank_pool.run(_leave_everything, str(config), str(log), server.url, exports, world_size=1)
    assert ends == [0] * (1 + exports) + [2, 2, 2], log.read_text()
    text = log.read_text()
    assert "wandb: could not start online" in text
    assert "OSError" in (tmp_path / "run/stacks/rank-00000.txt").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {"meta.json", "config.yaml", "events.jsonl"} | ({"config.json"} if exports else set())
    assert names <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files), "it went on offline"
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
