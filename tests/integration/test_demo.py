"""The demo, whole, as `make demo` runs it, in a copy of the repository's inputs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_the_demo_learns_context_and_exports_a_model(tmp_path: Path) -> None:
    for name in ("configs", "demo"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    # As a user's shell has it: tests ask for one thread and a CPU accelerator, users do not.
    of_tests = ("OMP_NUM_THREADS", "DS_ACCELERATOR")
    environment = {name: value for name, value in os.environ.items() if name not in of_tests}
    environment["PYTHONPATH"] = str(REPOSITORY)

    def run_command(*words: str) -> str:
        command = [sys.executable, "-m", "pipeline.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    print(run_command("demo"))
    run = tmp_path / "runs/demo"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {
        "initial_loss",
        "final_loss",
        "unigram_entropy",
        "validation_loss",
        "seconds",
        "tokens_per_second",
        "export_max_abs_logit_difference",
        "fill_mask",
    }
    assert summary["initial_loss"] == pytest.approx(math.log(2048), abs=0.5)  # it starts knowing nothing
    assert summary["validation_loss"] < summary["unigram_entropy"] - 0.3  # and ends knowing more than frequencies
    assert summary["export_max_abs_logit_difference"] <= 1e-5
    assert len(summary["fill_mask"]) == 3
    assert all(len(sentence["predictions"]) == 5 for sentence in summary["fill_mask"])
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "hf/model.safetensors").exists()
    # Any logged step can be replayed without the model.
    logged = {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    replayed = json.loads(run_command("batch", "configs/demo.yaml", "--step", "600", "--world-size", "2", "--json"))
    assert replayed["digest"] == logged[600]["batch_digest"]
    # Run again, it says what it did instead of doing it twice.
    assert "the demo has run before" in run_command("demo")
