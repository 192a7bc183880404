"""`pretrain launch torchrun` with the real torchrun: ranks train, a signal ends the run in peace."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.runs import tiny_corpus, write_config

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEADLINE_SECONDS = 120


def test_a_signal_to_the_launcher_saves_and_ends_with_status_0(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_corpus(tmp_path / "corpus").directory)
    run = config.with_suffix("")
    command = [sys.executable, "-m", "pipeline.cli", "launch", "torchrun", str(config), "--processes", "2"]
    # Far from any regular checkpoint, however many steps are done before the signal arrives.
    overrides = ["--train.strategy", "ddp", "--train.steps", "1000000", "--checkpoint.every_steps", "1000000"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([*command, *overrides], cwd=REPOSITORY, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        status = process.wait(DEADLINE_SECONDS)
    finally:
        while process.poll() is None:  # a second Ctrl-C kills the ranks too
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
    assert status == 0, (tmp_path / "output").read_text()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "training", "checkpoint", "stopped"]
    assert (events[0]["world_size"], events[3]["signal"]) == (2, "SIGUSR1")
    assert (run / "checkpoints" / f"step-{events[3]['step']:08d}" / "meta.json").exists()
    assert "Traceback" not in (tmp_path / "output").read_text()
