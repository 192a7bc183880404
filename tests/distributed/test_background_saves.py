"""Saves of two ranks: they agree on the end of each at the same step, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from pipeline.checkpoints.meta import CheckpointMeta, checkpoint_directory, describe, list_checkpoints
from pipeline.checkpoints.pieces import Piece
from pipeline.checkpoints.retention import Retention
from pipeline.checkpoints.verifying import damage_of
from pipeline.train.background_saves import BackgroundSaves, Outcome
from pipeline.train.control import ControlPlane
from tests.rankpool import RankPool

ELEMENTS = 3 << 20
MOST_STEPS = 5000


class Rank:
    """A rank's loop without training: a tenth of a millisecond a step."""

    def __init__(self, directory: Path) -> None:
        dist.init_process_group("gloo")
        self.number = dist.get_rank()
        self.told: list[Outcome] = []
        self.control = ControlPlane(2, patience_seconds=30)
        retention = Retention(keep_last=1, every_steps=1)
        self.saves = BackgroundSaves(directory, self.control, self.number, retention, "token", self.told.append)
        self.steps = 0

    def begin(self, step: int) -> None:
        values = torch.full((ELEMENTS,), float(10 * step + self.number))
        piece = Piece("weight/a", (2 * ELEMENTS,), ELEMENTS * self.number, values)
        meta = CheckpointMeta(step, 0, "zero1", "fp32", 2, identity={}, facts={})
        self.saves.begin(step, lambda: [piece], describe(meta))

    def loop(self, until_step: int | None = None) -> None:
        """Steps until no save is under way on this rank, or so many."""
        while self.saves._save is not None and self.steps != until_step:
            assert self.steps < MOST_STEPS
            self.steps += 1
            self.saves.agree(*self.control.sum_integers(*self.saves.news()))
            time.sleep(1e-4 if self.steps < 100 else 1e-2)


def _two_saves(directory: str) -> tuple[int, list[str]]:
    rank = Rank(Path(directory))
    for step in (1, 2):
        rank.begin(step)
        rank.loop()
    rank.saves.close()
    return rank.steps, [outcome.path.name for outcome in rank.told if outcome.error is None]


def test_two_ranks_make_one_checkpoint(rank_pool: RankPool, tmp_path: Path) -> None:
    (steps, told), (other_steps, other_told) = rank_pool.run(_two_saves, str(tmp_path), world_size=2)
    assert steps == other_steps, "one rank would wait for ever in a collective that the other has not come to"
    assert (told, other_told) == (["step-00000001", "step-00000002"], [])
    assert list_checkpoints(tmp_path) == [2]
    path = checkpoint_directory(tmp_path, 2)
    assert damage_of(path) == []
    assert set(json.loads((path / "meta.json").read_text())["files"]) == {f"rank-0000{r}.safetensors" for r in (0, 1)}
    for rank in (0, 1):
        assert (load_file(path / f"rank-0000{rank}.safetensors")["weight/a"] == 20 + rank).all()


def _killed_on_rank_1(directory: str) -> dict[str, Any]:
    rank = Rank(Path(directory))
    rank.begin(1)
    rank.saves.settle()
    file = Path(directory, "checkpoints/.step-00000002.token.tmp/rank-00001.safetensors")
    pipe = -1
    if rank.number == 1:  # its process stands still in the middle of the file
        file.parent.mkdir(parents=True)
        os.mkfifo(file)
        pipe = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    rank.control.barrier()
    rank.begin(2)
    rank.loop(until_step=200)
    under_way = rank.saves._save is not None
    if rank.number == 1:
        assert rank.saves._writer is not None
        os.kill(rank.saves._writer.process_id, signal.SIGKILL)
    rank.loop()
    errors = [rank.saves.settle()]
    left = sorted(path.name for path in Path(directory, "checkpoints").iterdir())
    rank.control.barrier()
    rank.begin(3)
    errors.append(rank.saves.settle())
    rank.saves.close()
    if rank.number == 1:
        os.close(pipe)
    return {
        "steps": rank.steps,
        "under_way": under_way,
        "errors": errors,
        "left": left,
        "told": [outcome.error for outcome in rank.told],
    }


def test_a_failure_of_one_rank_is_that_of_all(rank_pool: RankPool, tmp_path: Path) -> None:
    first, second = rank_pool.run(_killed_on_rank_1, str(tmp_path), world_size=2, timeout_seconds=60)
    error = "rank 1: the process that writes checkpoints has ended (SIGKILL)"
    assert first["steps"] == second["steps"]
    assert first["under_way"] == second["under_way"] is True
    assert first["errors"] == second["errors"] == [error, None]
    assert (first["told"], second["told"]) == ([None, error, None], [])
    assert first["left"] == ["latest", "step-00000001"]
    assert list_checkpoints(tmp_path) == [3]
    assert damage_of(checkpoint_directory(tmp_path, 3)) == []
