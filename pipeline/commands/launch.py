"""`pretrain launch ...`: start the ranks of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.parsers import add_command, add_group


def add_launch_commands(commands: Any) -> None:
    """Declare them."""
    launch = add_group(commands, "launch", "start the ranks of a run")
    torchrun = add_command(
        launch, "torchrun", launch_torchrun, "train on this machine, one process a GPU", overrides=True
    )
    torchrun.add_argument("config", type=Path, help="run config (YAML)")
    torchrun.add_argument("--processes", type=int, metavar="N", help="ranks (default: one a GPU, or 1)")
    torchrun.add_argument(
        "--max-restarts", type=int, default=0, metavar="N", help="start all ranks again when one has failed (default 0)"
    )
    torchrun.add_argument("--print", action="store_true", dest="only_print", help="print the command and stop")
    requeue = add_command(
        launch, "requeue", launch_requeue, "put this SLURM job back if its run was stopped", overrides=True
    )
    requeue.add_argument("config", type=Path, help="run config (YAML)")


def launch_torchrun(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.torchrun import launch

    return launch(
        namespace.config,
        namespace.processes,
        overrides,
        max_restarts=namespace.max_restarts,
        only_print=namespace.only_print,
    )


def launch_requeue(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.requeue import requeue

    requeue(namespace.config, overrides)
    return 0
