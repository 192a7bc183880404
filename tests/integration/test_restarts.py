"""The same command again: while the first one is at work, and with a config or a corpus that has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.directory_lock import DirectoryLock
from pipeline.cli import main
from pipeline.monitor.events import read_events
from tests.corpora import random_lengths, write_corpus
from tests.runs import column, tiny_corpus, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, tiny_corpus(tmp_path / "corpus").directory)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_a_second_run_in_the_same_directory_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.with_suffix("")
    short = ("--train.steps", "2", "--schedule.warmup_steps", "0")
    assert main(["train", str(config), *short]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with DirectoryLock(run, "run_directory"):  # another job
        in_use = f"run_directory: {run} is in use by process {os.getpid()} on host "
        assert in_use in refusal(capsys, "train", config, "--train.steps", 4, *short[2:])
        assert in_use in refusal(capsys, "launch", "torchrun", config, "--processes", 2, "--train.strategy", "ddp")
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path: text for path, text in after.items() if path.parent != run or path.name[0] != "."} == {
        path: text for path, text in before.items() if path.parent != run or path.name[0] != "."
    }
    assert main(["train", str(config), "--train.steps", "4", *short[2:]]) == 0
    assert column(run, "step") == [1, 2, 3, 4]


def test_a_refused_start_leaves_no_lock(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refusal(capsys, "train", config, "--data.corpus", "nowhere")
    assert not config.with_suffix("").exists()


def test_changes_are_refused_unless_they_are_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.with_suffix("")
    train = ["train", str(config), "--schedule.warmup_steps", "0"]
    assert main([*train, "--train.steps", "2"]) == 0
    # Another corpus with the same tokenizer, and another rate.
    shutil.rmtree(config.parent / "corpus")
    write_corpus(config.parent / "corpus", random_lengths(1, 3, 30), vocab_size=200)
    changed = [*train, "--train.steps", "4", "--optimizer.learning_rate", "3e-3"]
    accept = ["--accept-change", "corpus_fingerprint", "--accept-change", "stream.sources"]
    message = refusal(capsys, *changed)
    assert "optimizer.learning_rate: checkpoint 0.01, now 0.003" in message
    assert "corpus_fingerprint: checkpoint" in message
    message = refusal(capsys, *changed, *accept)
    assert "corpus_fingerprint" not in message
    assert "optimizer.learning_rate: checkpoint 0.01, now 0.003" in message
    assert [event["event"] for event in read_events(run)][-1] == "finished", "nothing has begun"

    assert main([*changed, *accept, "--accept-change", "optimizer.learning_rate"]) == 0
    (event,) = [event for event in read_events(run) if event["event"] == "change_accepted"]
    assert event["step"] == 2
    assert set(event["changes"]) == {"corpus_fingerprint", "stream.sources", "optimizer.learning_rate"}
    assert event["changes"]["optimizer.learning_rate"] == {"checkpoint": 0.01, "now": 0.003}
    assert column(run, "step") == [1, 2, 3, 4]
    # From now on this is the run.
    assert main([*changed[:-3], "5", *changed[-2:]]) == 0
    assert "optimizer.learning_rate: checkpoint 0.003, now 0.01" in refusal(capsys, *train, "--train.steps", "6")


def test_the_launcher_passes_accepted_changes_on(config: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "launch", "torchrun", str(config), "--print"]
    printed = subprocess.check_output([*command, "--accept-change", "seed", "--seed", "1"], text=True)
    assert printed.rstrip().endswith(f"train {config} --seed 1 --accept-change seed")
