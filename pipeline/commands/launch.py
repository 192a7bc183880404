"""`pretrain launch ...`: start the ranks of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.commands.parsers import add_accept_change, add_command, add_group, add_json
from pipeline.commands.printing import print_lines


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
    add_accept_change(torchrun)
    torchrun.add_argument("--print", action="store_true", dest="only_print", help="print the command and stop")
    _add_slurm(launch)
    requeue = add_command(
        launch, "requeue", launch_requeue, "put this SLURM job back if its run can go on", overrides=True
    )
    requeue.add_argument("config", type=Path, help="run config (YAML)")
    requeue.add_argument(
        "--max-restarts", type=int, metavar="N", help="the ranks have failed: N times in a row without a new checkpoint"
    )
    add_accept_change(requeue)  # the script gives both commands the same arguments


def _add_slurm(launch: Any) -> None:
    slurm = add_command(
        launch, "slurm", launch_slurm, "write, show and submit the sbatch script of a run", overrides=True
    )
    slurm.add_argument("config", type=Path, help="run config (YAML)")
    job = slurm.add_argument_group("what the job asks for")
    job.add_argument("--nodes", type=int, required=True, metavar="N")
    job.add_argument("--gpus-per-node", type=int, required=True, metavar="G", help="0: none")
    job.add_argument("--time", required=True, metavar="T", help="as sbatch takes it: 90, 12:00:00, 2-00")
    job.add_argument("--tasks-per-node", type=int, metavar="N", help="ranks of a node (default: one a GPU, or 1)")
    job.add_argument("--cpus-per-task", type=int, default=8, metavar="N", help="cores of a rank (default 8)")
    job.add_argument("--mem", default="0", metavar="SIZE", help="memory of a node (default: all)")
    for name in ("partition", "account", "qos"):
        job.add_argument(f"--{name}", metavar="NAME")
    job.add_argument("--job-name", metavar="NAME", help="default: that of the run directory")
    job.add_argument("--sbatch", action="append", default=[], metavar="=--OPTION", help="any other option of sbatch")
    job.add_argument(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="requeue it when ranks have failed, at most N times in a row without a new checkpoint (default 3)",
    )
    job.add_argument("--chain", type=int, default=1, metavar="N", help="N jobs, each goes on where the last one ended")
    script = slurm.add_argument_group("what its script does")
    script.add_argument("--module", action="append", default=[], metavar="NAME", help="module load NAME")
    script.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="a line of bash before the ranks start"
    )
    script.add_argument(
        "--interface", metavar="NAME", help="network interface of NCCL and Gloo (default: their choice)"
    )
    script.add_argument("--local-cache", metavar="DIR", help="caches on a disk of the node: '$TMPDIR/pretrain'")
    script.add_argument("--container", metavar="IMAGE", help="run the ranks in it")
    script.add_argument(
        "--runtime", choices=("pyxis", "apptainer"), help="of the container (default: apptainer for *.sif, else pyxis)"
    )
    script.add_argument("--mount", action="append", default=[], metavar="FROM[:TO]", help="into the container")
    script.add_argument(
        "--script", type=Path, metavar="FILE", help="where it is written (default: RUN_DIRECTORY.sbatch)"
    )
    slurm.add_argument("--submit", action="store_true", help="hand it to sbatch")
    add_json(slurm)


def launch_torchrun(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.torchrun import launch

    return launch(
        namespace.config,
        namespace.processes,
        overrides,
        accepted_changes=namespace.accept_change,
        max_restarts=namespace.max_restarts,
        only_print=namespace.only_print,
    )


def launch_slurm(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.sbatch import JobOptions
    from pipeline.launch.slurm import make_job, submit, write_script

    gpus, image, tasks = namespace.gpus_per_node, namespace.container, namespace.tasks_per_node
    options = JobOptions(
        nodes=namespace.nodes,
        time=namespace.time,
        ranks_per_node=max(gpus, 1) if tasks is None else tasks,
        name=namespace.job_name or "",
        gpus_per_node=gpus,
        cpus_per_task=namespace.cpus_per_task,
        memory=namespace.mem,
        partition=namespace.partition,
        account=namespace.account,
        qos=namespace.qos,
        more=namespace.sbatch,
        max_restarts=namespace.max_restarts,
        modules=namespace.module,
        setup=namespace.setup,
        interface=namespace.interface,
        container=image,
        container_runtime=namespace.runtime or ("apptainer" if str(image).endswith(".sif") else "pyxis"),
        mounts=namespace.mount,
    )
    job = make_job(
        namespace.config,
        overrides,
        options,
        chain=namespace.chain,
        local_cache=namespace.local_cache,
        script=namespace.script,
    )
    write_script(job)
    numbers = submit(job) if namespace.submit else []
    facts = {"script": str(job.script), "jobs": numbers}
    print_lines(
        [job.text, f"written to {job.script}", *(f"submitted: job {n}" for n in numbers)], facts, namespace.json
    )
    return 0


def launch_requeue(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.requeue import requeue

    requeue(namespace.config, overrides, max_restarts=namespace.max_restarts)
    return 0
