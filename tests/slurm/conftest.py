"""What the proofs on SLURM share: one cluster, one corpus, one run that nobody disturbed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import tiny_corpus, write_config
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import OVERRIDES

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


@pytest.fixture(scope="session")
def undisturbed(slurm_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of two ranks that nothing happens to."""
    config = write_config(tmp_path_factory.mktemp("undisturbed"), slurm_corpus)
    command = [sys.executable, "-m", "pipeline.cli", "launch", "torchrun", str(config), "--processes", "2"]
    subprocess.run([*command, *OVERRIDES], cwd=REPOSITORY, check=True)
    return config.with_suffix("")
