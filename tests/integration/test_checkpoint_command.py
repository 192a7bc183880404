"""`pretrain checkpoint list|verify|prune` on the checkpoints of a run; what they print and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.meta import list_checkpoints
from pipeline.cli import main
from tests.unit.checkpoints.checkpoint_cases import flip_byte, write_checkpoint

CONFIG = (
    "run_directory: {}\ndata: {{corpus: corpus}}\ncheckpoint: {{every_steps: 10, keep_last: 1, keep_every_steps: 20}}\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG.format(run))
    for step in (10, 20, 30, 40, 43):
        write_checkpoint(run, step, num_bytes=1_500_000)
    return run


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["checkpoint", *map(str, arguments)]) == status
    out, error = capsys.readouterr()
    assert "Traceback" not in error
    return out if status == 0 or out else error


def facts(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> dict[str, Any]:
    return dict(json.loads(printed(capsys, *arguments, "--json", status=status)))


def test_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints/step-00000030/meta.json").unlink()
    rows = facts(capsys, "list", run)["checkpoints"]
    assert [(row["step"], row["kept"]) for row in rows] == [
        (10, []), (20, ["for ever"]), (30, []), (40, ["last at intervals", "for ever"]), (43, ["last"]),
    ]  # fmt: skip
    assert {(row["bytes"], row["world_size"], row["strategy"]) for row in rows if row["step"] != 30} == {
        (3_000_000, 2, "zero1")
    }
    assert "does not exist" in rows[2]["problem"]
    lines = printed(capsys, "list", run).splitlines()
    assert lines[0].split() == ["step", "saved", "at", "GB", "ranks", "strategy", "kept", "as"]
    assert lines[1].split()[0::2] == ["10", "0.003", "zero1", "kept:", "with", "next"]
    assert lines[1].split()[1].startswith("20")
    assert lines[5].endswith("zero1     last")


def test_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "verify", run).splitlines() == [f"step {step}: intact" for step in (10, 20, 30, 40, 43)]
    flip_byte(run / "checkpoints/step-00000030/rank-00000.safetensors", 7)
    (run / "checkpoints/step-00000030/rank-00001.safetensors").unlink()
    lines = printed(capsys, "verify", run, status=2).splitlines()
    assert lines[2].startswith("step 30: rank-00000.safetensors: checksum ")
    assert lines[3] == "step 30: rank-00001.safetensors: No such file or directory"
    rows = facts(capsys, "verify", run, status=2)["checkpoints"]
    assert [row["step"] for row in rows if not row["intact"]] == [30]
    assert printed(capsys, "verify", run, "--step", 20) == "step 20: intact\n"
    error = printed(capsys, "verify", run, "--step", 7, status=2)
    assert "has no checkpoint of step 7; there are 10, 20, 30, 40, 43." in error


def test_prune(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, "prune", run, "--dry-run") == {"deleted": [10, 30], "dry_run": True, "newest_intact": 43}
    assert list_checkpoints(run) == [10, 20, 30, 40, 43]
    assert printed(capsys, "prune", run, "--keep-last", 2) == "step 10: deleted\n"
    assert printed(capsys, "prune", run) == "step 30: deleted\n"
    assert printed(capsys, "prune", run) == "nothing to delete\n"
    assert list_checkpoints(run) == [20, 40, 43]
    assert "--keep-last is 0; keep at least 1." in printed(capsys, "prune", run, "--keep-last", 0, status=2)


def test_prune_keeps_the_last_good_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (40, 43):
        flip_byte(run / f"checkpoints/step-{step:08d}/rank-00000.safetensors", 7)
    assert facts(capsys, "prune", run) == {"deleted": [10], "dry_run": False, "newest_intact": 30}
    for step in (20, 30):
        flip_byte(run / f"checkpoints/step-{step:08d}/rank-00000.safetensors", 7)
    error = printed(capsys, "prune", run, "--keep-last", 1, status=2)
    assert "none of the checkpoints of" in error
    assert "so nothing is deleted" in error
    assert list_checkpoints(run) == [20, 30, 40, 43]


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_no_run_and_no_checkpoints(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = printed(capsys, command, tmp_path, status=2)
    assert f"checkpoint {command}: {tmp_path} holds no run (no config.yaml)" in error
    (tmp_path / "config.yaml").write_text(CONFIG.format(tmp_path))
    assert printed(capsys, command, tmp_path) in ("no checkpoints yet\n", "nothing to delete\n")


def test_nothing_heavy_is_loaded_to_verify(run: Path) -> None:
    program = (
        f"import sys; from pipeline.cli import main; main(['checkpoint', 'verify', {str(run)!r}]); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "safetensors"} & set(done.stdout.split()) == set()
