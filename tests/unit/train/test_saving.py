"""Runs whose checkpoints are damaged, whose disk is full or slow: they go on, and end as the undisturbed run does."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from pipeline.base.errors import UserError
from pipeline.checkpoints.file_writer import FileWriter
from pipeline.checkpoints.meta import checkpoint_directory, checksum_of, list_checkpoints
from pipeline.checkpoints.verifying import damage_of
from pipeline.cli import main
from pipeline.monitor.events import read_events
from pipeline.train.run import train
from tests.runs import column, load, tiny_corpus, weights_of, write_config
from tests.unit.checkpoints.checkpoint_cases import flip_byte

OPTIONS = ("--train.steps", "16", "--checkpoint.every_steps", "4", "--evaluation.every_steps", "0")
RANK_FILE = "rank-00000.safetensors"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_config(tmp_path_factory.mktemp("undisturbed"), corpus)
    train(load(config, *OPTIONS))
    return config.with_suffix("")


@pytest.fixture
def saved(undisturbed: Path, corpus: Path, tmp_path: Path) -> Path:
    """The config of a run that is done, to damage."""
    config = write_config(tmp_path, corpus)
    shutil.copytree(undisturbed, config.with_suffix(""))
    return config


def events_of(run: Path, *names: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] in names]


def assert_same_end(run: Path, undisturbed: Path) -> None:
    for name in ("step", "loss", "grad_norm", "batch_digest"):
        assert column(run, name) == column(undisturbed, name), name
    weights, expected = (weights_of(path, 16) for path in (run, undisturbed))
    assert all(weights[name].equal(value) for name, value in expected.items())


def test_every_save_is_an_event_when_it_is_published(undisturbed: Path) -> None:
    saves = events_of(undisturbed, "checkpoint", "finished")
    assert [(event["event"], event["step"]) for event in saves] == [
        *(("checkpoint", step) for step in (4, 8, 12, 16)), ("finished", 16),
    ]  # fmt: skip
    for event in saves[:-1]:
        assert event["path"] == f"step-{event['step']:08d}"
        assert 0 <= event["stall_seconds"] <= event["seconds"]
        assert damage_of(checkpoint_directory(undisturbed, event["step"])) == []
    assert (undisturbed / "checkpoints/latest").read_text() == "step-00000016\n"


def test_damaged_checkpoints_are_set_aside(saved: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = saved.with_suffix("")
    flip_byte(checkpoint_directory(run, 16) / RANK_FILE, 10_000)
    (checkpoint_directory(run, 12) / "meta.json").unlink()
    logging.getLogger("pretrain").propagate = True  # a command may have set up its own log
    train(load(saved, *OPTIONS))
    assert_same_end(run, undisturbed)
    damaged = events_of(run, "checkpoint_damaged")
    assert [(event["step"], event["goes_on_from"], event["set_aside_as"]) for event in damaged] == [
        (16, 8, "step-00000016.damaged"),
        (12, 8, "step-00000012.damaged"),
    ]
    assert damaged[0]["problems"][0].startswith(f"{RANK_FILE}: checksum")
    assert damaged[1]["problems"] == ["meta.json is missing"]
    assert events_of(run, "resumed")[0]["step"] == 8
    # Once each, however many loggers have passed them on.
    warnings = list(dict.fromkeys(record.getMessage() for record in caplog.records if record.levelname == "WARNING"))
    assert (
        "checkpoint step-00000012 (meta.json is missing) is damaged; the run goes on from step 8 instead."
        in warnings[1]
    )
    assert list_checkpoints(run) == [4, 8, 12, 16]
    assert (run / "checkpoints/step-00000016.damaged" / RANK_FILE).exists()


def test_nothing_is_begun_anew_when_all_are_damaged(saved: Path) -> None:
    run = saved.with_suffix("")
    for step in (4, 8, 12, 16):
        os.truncate(checkpoint_directory(run, step) / RANK_FILE, 100)
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"all of them are damaged: step-00000016 \(rank-.*\), .*begin again at step 0"):
        train(load(saved, *OPTIONS))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


def forge(checkpoint: Path, content: bytes) -> None:
    """Give it another file, with the right size and checksum."""
    (checkpoint / RANK_FILE).write_bytes(content)
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["files"] = {RANK_FILE: {"bytes": len(content), "xxh3_128": xxhash.xxh3_128(content).hexdigest()}}
    (checkpoint / "meta.json").write_text(json.dumps({**meta, "checksum": checksum_of(meta)}))


class Malice:
    """Unpickled, it makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_malicious_file_is_not_executed(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, mark = saved.with_suffix(""), tmp_path / "mark"
    checkpoint = checkpoint_directory(run, 16)
    payload = pickle.dumps(Malice(mark))
    pickle.loads(pickle.dumps(Malice(tmp_path / "it works")))
    assert (tmp_path / "it works").exists()
    forge(checkpoint, payload)
    (checkpoint / "state").mkdir()
    for name in ("state/trainer.pt", "state/mp_rank_00_model_states.pt", "model.safetensors", "pytorch_model.bin"):
        (checkpoint / name).write_bytes(payload)
    commands = [
        ["train", str(saved), *OPTIONS, "--train.steps", "18"],
        ["export", str(run), "--output", str(tmp_path / "hf")],
        ["checkpoint", "verify", str(run)],
        ["checkpoint", "list", str(run)],
    ]
    statuses = [main(command) for command in commands]
    assert statuses == [2, 2, 0, 0]
    error = capsys.readouterr().err
    assert f"checkpoint {checkpoint} is damaged ({RANK_FILE}: " in error
    assert not mark.exists()


@pytest.fixture
def small_disk(undisturbed: Path, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A disk with room for two and a half checkpoints; calling it makes room for ten."""
    mount = tmp_path / "run" / "checkpoints"
    mount.mkdir(parents=True)
    num_bytes = sum(path.stat().st_size for path in checkpoint_directory(undisturbed, 16).iterdir())
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes * 5 // 2}", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")

    def grow() -> None:
        subprocess.run(["mount", "-o", f"remount,size={num_bytes * 10}", str(mount)], check=True)

    yield grow
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_a_full_disk_costs_saves_but_not_the_run(
    corpus: Path,
    undisturbed: Path,
    small_disk: Callable[[], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, corpus)
    run = config.with_suffix("")
    (run / "config.yaml").touch()  # it is a run's directory, though the disk was there first
    assert main(["train", str(config), *OPTIONS]) == 2
    assert [(event["event"], event["step"]) for event in events_of(run, "checkpoint", "checkpoint_failed")] == [
        ("checkpoint", 4), ("checkpoint", 8), ("checkpoint_failed", 12), ("checkpoint_failed", 16),
    ]  # fmt: skip
    error = capsys.readouterr().err
    assert "warning: no checkpoint of step 12: rank 0: No space left on device: " in error
    assert "pretrain: error: checkpoint of step 16: it could not be written (rank 0: No space left on device" in error
    assert "see to the disk, then run the same command to go on from the newest" in error
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000008"]
    assert not events_of(run, "finished")
    small_disk()
    assert main(["train", str(config), *OPTIONS]) == 0
    assert events_of(run, "resumed")[-1]["step"] == 8
    assert_same_end(run, undisturbed)


def test_a_slow_disk_changes_nothing(
    corpus: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done with a file only when somebody waits for it: the next save, or the end."""
    answer = FileWriter.answer
    monkeypatch.setattr(FileWriter, "answer", lambda self, *, wait: answer(self, wait=True) if wait else None)
    config = write_config(tmp_path, corpus)
    train(load(config, *OPTIONS))
    run = config.with_suffix("")
    assert [event["step"] for event in events_of(run, "checkpoint")] == [4, 8, 12, 16]
    assert_same_end(run, undisturbed)
    assert all(damage_of(checkpoint_directory(run, step)) == [] for step in (4, 8, 12, 16))


def test_a_full_disk_leaves_the_runs_other_files_their_room(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The whole run lies on the disk: room for a checkpoint and a half, and a line of metrics for every step."""
    config = write_config(tmp_path, corpus)
    run = config.with_suffix("")
    run.mkdir()
    num_bytes = sum(path.stat().st_size for path in checkpoint_directory(undisturbed, 16).iterdir())
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes * 3 // 2}", "tmpfs", str(run)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        with pytest.raises(UserError, match=r"checkpoint of step 16: it could not be written .* No space left on dev"):
            train(load(config, *OPTIONS))
        names = [(event["event"], event["step"]) for event in events_of(run, "checkpoint", "checkpoint_failed")]
        assert names == [("checkpoint", 4), *(("checkpoint_failed", step) for step in (8, 12, 16))]
        assert column(run, "loss") == column(undisturbed, "loss")
    finally:
        subprocess.run(["umount", "--lazy", str(run)], check=True)
