"""Whole runs of models that a `config.json` names, packed and padded: several ranks under ZeRO-1 compute what one rank
does, a run that goes on from a checkpoint ends to the bit as one that was not stopped, and compiled ones follow.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints.meta import checkpoint_directory
from tests.rankpool import RankPool
from tests.runs import column, run_rank, tiny_corpus, weights_of, write_config
from tests.unit.models.auto_cases import CASES, AutoCase

OBJECTIVES = {"masked": "mlm", "causal": "clm", "seq2seq": "denoise"}
STEPS = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus")).directory


def write_auto(directory: Path, corpus: Path, case: AutoCase, name: str = "run") -> Path:
    """A config for a run of this case in ``directory/name``."""
    path = write_config(directory, corpus, name)
    (directory / "config.json").write_text(json.dumps(case.keys))
    lines = [line for line in path.read_text().splitlines() if not line.startswith("model:")]
    packing = "" if case.padded is None else ", packing: one_document"
    lines = [line.replace("sequence_length: 64", f"sequence_length: 48{packing}") for line in lines]
    lines.append(f"model: {{family: auto, config: {directory / 'config.json'}}}")
    lines.append(f"objective: {{name: {OBJECTIVES[case.head]}}}")
    path.write_text("\n".join(lines) + "\n")
    return path


def _run(pool: RankPool, config: Path, strategy: str, world_size: int, *more: str) -> list[Any]:
    overrides = ["--train.strategy", strategy, "--train.steps", str(STEPS), "--evaluation.every_steps", "4", *more]
    pool.run(run_rank, str(config), overrides, world_size=world_size, timeout_seconds=500)
    return [column(config.with_suffix(""), name) for name in ("loss", "grad_norm")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["llama", "openai-gpt", "t5"])
def test_two_ranks_compute_what_one_does_and_a_resumed_run_ends_alike(
    name: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    alone = write_auto(tmp_path, corpus, case, "alone")
    expected = _run(rank_pool, alone, "single", 1)
    shared = write_auto(tmp_path, corpus, case, "shared")
    assert _run(rank_pool, shared, "zero1", 2) == [pytest.approx(values, rel=1e-3) for values in expected]
    assert min(expected[0]) < expected[0][0] - 0.1
    weights = weights_of(tmp_path / "shared", STEPS)
    shutil.rmtree(checkpoint_directory(tmp_path / "shared", STEPS))  # as if it had been killed after step 5
    _run(rank_pool, shared, "zero1", 2)
    again = weights_of(tmp_path / "shared", STEPS)
    assert all(torch.equal(again[key], value) for key, value in weights.items())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["llama"])
def test_a_compiled_run_follows(name: str, rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    case = CASES[name]
    eager, compiled = (write_auto(tmp_path, corpus, case, run) for run in ("eager", "compiled"))
    expected = _run(rank_pool, eager, "single", 1)
    found = _run(rank_pool, compiled, "single", 1, "--train.compile", "true")
    assert found == [pytest.approx(values, rel=1e-3) for values in expected]
