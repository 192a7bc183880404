"""Who this process is among all processes of a run: read from the launcher's environment, never from a device.

Three launchers are known: ``torchrun`` (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ...), ``srun`` in SLURM
(``SLURM_PROCID``, ``SLURM_NTASKS``, ...) and none (one process).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.base.errors import UserError


@dataclass(frozen=True)
class RankFacts:
    """Place of this process in the run.

    ``rank`` counts over all nodes, ``local_rank`` on this node; ``launcher`` is ``torchrun``, ``slurm`` or ``none``.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    main_address: str = "127.0.0.1"
    main_port: int = 0
    launcher: str = "none"

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.local_world_size


def rank_facts(environ: Mapping[str, str] | None = None) -> RankFacts:
    """Read the facts from ``environ`` (default: ``os.environ``).

    Raises:
        UserError: a variable that the launcher must set is missing, or nodes run different numbers of ranks.
    """
    env = os.environ if environ is None else environ
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            return _checked(_from_torchrun(env))
        # A batch script itself (not under srun) has SLURM_PROCID=0 but no step: that is one process.
        if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
            return _checked(_from_slurm(env))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"a variable of the launcher holds no number ({error}): check how the ranks are started."
        ) from None
    return RankFacts()


def _from_torchrun(env: Mapping[str, str]) -> RankFacts:
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set but {', '.join(missing)} is not: start the ranks with torchrun, "
            "or unset RANK and WORLD_SIZE to run one process."
        )
    world_size = int(env["WORLD_SIZE"])
    local_world_size = int(env.get("LOCAL_WORLD_SIZE", world_size))
    rank = int(env["RANK"])
    return RankFacts(
        rank=rank,
        world_size=world_size,
        local_rank=int(env["LOCAL_RANK"]),
        local_world_size=local_world_size,
        node_rank=int(env.get("GROUP_RANK", rank // local_world_size)),
        main_address=env["MASTER_ADDR"],
        main_port=int(env["MASTER_PORT"]),
        launcher="torchrun",
    )


def _from_slurm(env: Mapping[str, str]) -> RankFacts:
    world_size = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")))
    tasks_per_node = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", str(world_size)))
    local_world_size = _tasks_on_every_node(tasks_per_node)
    if world_size > 1 and "MASTER_ADDR" not in env:
        raise UserError(
            f"srun started {world_size} tasks but MASTER_ADDR is not set: use slurm/train.sbatch, or before srun run "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    job = int(env.get("SLURM_JOB_ID", "0"))
    return RankFacts(
        rank=int(env["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(env["SLURM_LOCALID"]),
        local_world_size=local_world_size,
        node_rank=int(env.get("SLURM_NODEID", "0")),
        main_address=env.get("MASTER_ADDR", "127.0.0.1"),
        # Two jobs on one node must not share a port: derive it from the job's number.
        main_port=int(env.get("MASTER_PORT", 10_000 + job % 50_000)),
        launcher="slurm",
    )


def _tasks_on_every_node(text: str) -> int:
    """``"4(x2)"`` -> 4; ``"4(x2),3"`` is refused: ranks are counted as nodes x ranks a node."""
    counts = {int(part) for part in re.findall(r"(\d+)(?:\(x\d+\))?", text)}
    if len(counts) != 1:
        raise UserError(f"SLURM placed different numbers of tasks on the nodes ({text}): set --ntasks-per-node.")
    return counts.pop()


def _checked(facts: RankFacts) -> RankFacts:
    if not 0 <= facts.rank < facts.world_size:
        raise UserError(f"rank {facts.rank} is outside a world of {facts.world_size} ranks: check the launcher.")
    if facts.world_size % facts.local_world_size:
        raise UserError(
            f"{facts.world_size} ranks cannot be spread over nodes of {facts.local_world_size} ranks each: "
            "start the same number of ranks on every node."
        )
    return facts
