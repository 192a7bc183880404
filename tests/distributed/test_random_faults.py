"""Runs that are killed at random moments end as if nothing had happened; `FAULT_TRIALS` says how many (20)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.faults import do_trials, write_tiny_corpus
from benchmarks.faults_trial import draw

NUM_TRIALS = int(os.environ.get("FAULT_TRIALS", "20"))


@pytest.mark.proof
@pytest.mark.timeout(180 * NUM_TRIALS)
def test_random_trials(tmp_path: Path) -> None:
    rows = do_trials(range(NUM_TRIALS), 60.0, tmp_path, write_tiny_corpus(tmp_path), None)
    assert [row for row in rows if row[6]] == [], "the first number of each is its seed: benchmarks/faults.py --first"
    assert sum(len(row[2].split("; ")) for row in rows) >= sum(len(draw(seed).blows) for seed in range(NUM_TRIALS)) // 2
