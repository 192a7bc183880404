"""Launching ranks on one machine: the command line, the default number of ranks, signals that reach the ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.launch import torchrun
from pipeline.launch.torchrun import (
    child_processes,
    launch,
    num_visible_gpus,
    ranks_environment,
    run_forwarding_signals,
    torchrun_command,
)


def write_config(directory: Path, global_batch_size: int = 8) -> Path:
    path = directory / "run.yaml"
    path.write_text(
        f"run_directory: {directory}/run\n"
        f"data: {{corpus: {directory}/corpus}}\n"
        f"train: {{global_batch_size: {global_batch_size}}}\n"
    )
    return path


def test_command_line() -> None:
    assert torchrun_command("a b.yaml", 4, ["--train.steps", "10"], python="python3") == [
        *("python3", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "--max-restarts=0"),
        "--shutdown-timeout=300",
        *("-m", "pipeline.cli", "train", "a b.yaml", "--train.steps", "10"),
    ]


@pytest.mark.parametrize(
    ("visible", "num_gpus"),
    [("0,1,2", 3), ("GPU-8f6d, MIG-1a", 2), ("", 0), ("-1", 0), ("0,-1,2", 1), ("3", 1)],
)
def test_visible_gpus_from_the_environment(visible: str, num_gpus: int, tmp_path: Path) -> None:
    assert num_visible_gpus({"CUDA_VISIBLE_DEVICES": visible}, tmp_path) == num_gpus


def test_visible_gpus_from_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert num_visible_gpus({}, tmp_path) == 3


def test_cores_are_shared_out_unless_the_user_says_otherwise() -> None:
    assert ranks_environment({"A": "b"}, 2, 9).items() >= {"A": "b", "OMP_NUM_THREADS": "4"}.items()
    assert ranks_environment({}, 8, 2)["OMP_NUM_THREADS"] == "1"
    assert ranks_environment({"OMP_NUM_THREADS": "3"}, 8, 2)["OMP_NUM_THREADS"] == "3"


def test_only_print(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config = write_config(tmp_path)
    assert launch(config, None, ["--seed", "3"], max_restarts=3, only_print=True) == 0
    assert capsys.readouterr().out.endswith(
        f"--nproc-per-node=2 --max-restarts=3 --shutdown-timeout=300 -m pipeline.cli train {config} --seed 3\n"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(config, None, only_print=True)
    assert "--nproc-per-node=1 " in capsys.readouterr().out


def test_number_of_ranks_is_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--processes is 0; start at least 1 rank"):
        launch(write_config(tmp_path), 0)
    with pytest.raises(UserError, match=r"--max-restarts is -1; give 0 \(never start again\) or more"):
        launch(write_config(tmp_path), 1, max_restarts=-1)
    with pytest.raises(UserError, match=r"9 ranks share 8 rows a step"):
        launch(write_config(tmp_path), 9)


def test_children_of_a_process_whatever_their_names(tmp_path: Path) -> None:
    stats = {10: "10 (a) S 7 1", 11: "11 (a) b (c)) R 7 1", 12: "12 (d) S 10 1", 13: "13 (e) Z 7 1"}
    for pid, stat in stats.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat)
    assert child_processes(7, tmp_path) == [10, 11]


# Stands for torchrun: two ranks of its own, which answer a signal by noting it and leaving with status 0.
LAUNCHER = """
import subprocess, sys
rank = '''
import pathlib, signal, sys, time
def leave(number, frame):
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, leave)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(60)
'''
files = sys.argv[1:]
ranks = [subprocess.Popen([sys.executable, "-c", rank, file], start_new_session=True) for file in files]
sys.exit(max(abs(rank.wait()) for rank in ranks))
"""


@pytest.mark.parametrize(
    ("sent", "received"),
    [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGINT", "SIGTERM"), ("SIGHUP", "SIGTERM")],
)
def test_signals_reach_the_ranks_and_a_clean_end_has_status_0(sent: str, received: str, tmp_path: Path) -> None:
    files = [tmp_path / "0", tmp_path / "1"]

    def send() -> None:
        while [file.exists() and file.read_text() for file in files] != ["ready", "ready"]:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.Signals[sent])

    before = signal.getsignal(signal.Signals[sent])
    sender = threading.Thread(target=send)
    sender.start()
    assert run_forwarding_signals([sys.executable, "-c", LAUNCHER, *map(str, files)], os.environ) == 0
    sender.join()
    assert [file.read_text() for file in files] == [received, received]
    assert signal.getsignal(signal.Signals[sent]) is before


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


def test_a_second_interrupt_kills() -> None:
    program = f"""
import os, sys
from pipeline.launch.torchrun import run_forwarding_signals
sys.exit(-run_forwarding_signals([sys.executable, "-c", {STUBBORN!r}], os.environ))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == signal.SIGKILL
    process.stdout.close()


def test_status_of_a_command_that_fails() -> None:
    assert run_forwarding_signals([sys.executable, "-c", "raise SystemExit(3)"], os.environ) == 3


# Stands for torchrun with two ranks, of which the first fails; it waits for the other, which SIGTERM does not reach.
STOPPED_RANK = """
import signal, subprocess, sys
failing = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(5)"], stdin=subprocess.PIPE)
stopped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
stopped.send_signal(signal.SIGSTOP)
failing.stdin.close()
failing.wait()
stopped.terminate()
sys.exit(-stopped.wait())
"""


def test_a_stopped_rank_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "_LOOK_SECONDS", 0.05)
    assert run_forwarding_signals([sys.executable, "-c", STOPPED_RANK], os.environ, 2) == signal.SIGKILL
