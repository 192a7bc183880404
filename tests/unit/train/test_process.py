"""Threads of a rank."""

from __future__ import annotations

import os

from pipeline.base.ranks import RankFacts
from pipeline.train.process import default_threads


def test_slurm_says_how_many_cores_a_task_has() -> None:
    facts = RankFacts(world_size=8, local_world_size=8, launcher="slurm")
    assert default_threads(facts, {"SLURM_CPUS_PER_TASK": "6"}) == 6


def test_else_the_ranks_of_a_node_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_threads(RankFacts(), {"SLURM_CPUS_PER_TASK": "6"}) == cores
    assert default_threads(RankFacts(world_size=cores, local_world_size=cores, launcher="torchrun"), {}) == 1
    assert default_threads(RankFacts(world_size=10_000, local_world_size=10_000, launcher="torchrun"), {}) == 1
