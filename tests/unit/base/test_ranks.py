"""Rank facts from the environments of torchrun, srun and no launcher at all."""

from __future__ import annotations

import pytest

from pipeline.base.errors import UserError
from pipeline.base.ranks import RankFacts, rank_facts

# What torchrun sets for the last of four ranks on two nodes.
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29400",
}

# What SLURM 22.05 sets for the last task of `srun` on two nodes with two tasks each, and slurm/train.sbatch adds.
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_ID": "60017",
    "MASTER_ADDR": "n1",
}


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


def test_no_launcher_is_one_rank() -> None:
    assert rank_facts({}) == RankFacts() == RankFacts(0, 1, 0, 1, 0, "127.0.0.1", 0, "none")


def test_torchrun() -> None:
    facts = rank_facts(TORCHRUN)
    assert facts == RankFacts(3, 4, 1, 2, 1, "node-a", 29400, "torchrun")
    assert facts.num_nodes == 2


def test_older_torchrun_without_the_optional_variables() -> None:
    facts = rank_facts(without(TORCHRUN, "LOCAL_WORLD_SIZE", "GROUP_RANK"))
    assert (facts.local_world_size, facts.node_rank, facts.num_nodes) == (4, 0, 1)


def test_srun() -> None:
    facts = rank_facts(SRUN)
    assert facts == RankFacts(3, 4, 1, 2, 1, "n1", 10_000 + 60017 % 50_000, "slurm")
    assert facts.num_nodes == 2


def test_srun_port_of_the_batch_script_wins() -> None:
    assert rank_facts(SRUN | {"MASTER_PORT": "12345"}).main_port == 12345


def test_torchrun_inside_a_slurm_job() -> None:
    assert rank_facts(SRUN | TORCHRUN).launcher == "torchrun"


def test_a_batch_shell_is_no_rank() -> None:
    assert rank_facts(without(SRUN, "SLURM_STEP_ID") | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) == RankFacts()


def test_one_task_needs_no_address() -> None:
    one = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}
    facts = rank_facts(without(SRUN, "MASTER_ADDR") | one)
    assert (facts.world_size, facts.main_address) == (1, "127.0.0.1")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (without(TORCHRUN, "MASTER_PORT"), r"RANK and WORLD_SIZE are set but MASTER_PORT is not: start the ranks with"),
        (
            without(TORCHRUN, "LOCAL_RANK", "MASTER_ADDR"),
            r"LOCAL_RANK, MASTER_ADDR is not: .* or unset RANK and WORLD_SIZE to run one process",
        ),
        (TORCHRUN | {"RANK": "4"}, r"rank 4 is outside a world of 4 ranks: check the launcher"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, r"4 ranks cannot be spread over nodes of 3 ranks each"),
        (without(SRUN, "MASTER_ADDR"), r"srun started 4 tasks but MASTER_ADDR is not set: use slurm/train.sbatch"),
        (
            SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"},
            r"SLURM placed different numbers of tasks on the nodes \(2,1\): set --ntasks-per-node",
        ),
    ],
)
def test_what_a_user_can_get_wrong(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rank_facts(variables)


def test_the_default_is_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert rank_facts().rank == 3


def test_a_variable_that_is_no_number_is_told() -> None:
    environ = {"RANK": "zero", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match=r"a variable of the launcher holds no number \(.*'zero'\)"):
        rank_facts(environ)
