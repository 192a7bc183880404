"""The page on a new objective, followed to the letter in a copy of the package: the objective trains and resumes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import column, tiny_corpus, write_config

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
MOST_LINES = 40


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with what the page adds; its compiled kernels come along."""
    shutil.copytree(REPOSITORY / "pipeline", tmp_path / "pipeline")
    (file,), (patch,) = blocks("python"), blocks("diff")
    name = re.match(r"# (pipeline/\S+)\n", file)
    assert name
    (tmp_path / name[1]).write_text(file)
    command = ["git", "apply", "--whitespace=nowarn", "-"]
    done = subprocess.run(command, cwd=tmp_path, input=patch, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path


_PROGRAM = """
import sys
import numpy as np
from pipeline.cli import main
from pipeline.config.loading import load_run_config
from pipeline.train.streams import open_streams

path, overrides = sys.argv[1], ["--objective.name", "stride"]
for steps in ("10", "20"):
    assert main(["train", path, *overrides, "--train.steps", steps]) == 0
config = load_run_config(path, overrides)
streams = open_streams(config)
rows = streams.train.rows(0)
inputs, labels = streams.objective(config.seed, config.data.sequence_length).labels_of(rows)
predicted = labels != -100
assert set(np.argwhere(predicted)[:, 1] % 7) == {3}
assert (labels[predicted] == rows.tokens[predicted]).all()
assert (inputs[predicted] == streams.manifest.special_ids["mask"]).all()
assert (inputs[~predicted] == rows.tokens[~predicted]).all()
"""


def test_the_page(copy: Path) -> None:
    (file,), (patch,) = blocks("python"), blocks("diff")
    added = [line for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert len([line for line in file.splitlines() if line.strip()]) + len(added) < MOST_LINES
    config = write_config(copy / "runs", tiny_corpus(copy / "corpus").directory)
    command = [sys.executable, "-c", _PROGRAM, str(config)]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = column(config.with_suffix(""), "loss")
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
