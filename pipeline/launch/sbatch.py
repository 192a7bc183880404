"""The text of an sbatch script: `train.sbatch` of this folder with the options and settings of one run put in. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from pipeline.base.errors import UserError

ContainerRuntime = Literal["pyxis", "apptainer"]


@dataclass(frozen=True)
class JobOptions:
    """What a job asks of SLURM, and what its script does before the run. Texts reach the script as they are, quoted."""

    nodes: int
    time: str
    """As `sbatch --time`: `90`, `12:00:00`, `2-00`."""

    ranks_per_node: int
    name: str = ""
    log: str = "%x-%j.log"
    directory: str = "."
    """Where the job runs; shared by the nodes."""

    gpus_per_node: int = 0
    cpus_per_task: int = 8
    memory: str = "0"
    """Of a node; 0 is all of it."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    signal_seconds: int = 0
    """SIGUSR1 comes so long before the time limit; 0: never."""

    more: Sequence[str] = ()
    """Further options of sbatch, e.g. ``--constraint=h100``."""

    modules: Sequence[str] = ()
    setup: Sequence[str] = ()
    """Lines of bash that the script runs before the ranks, unquoted."""

    commands_directory: str | None = None
    """Where `pretrain` is on the nodes, if it may not be on PATH."""

    interface: str | None = None
    """Network interface of NCCL and Gloo. Default: what they choose."""

    container: str | None = None
    container_runtime: ContainerRuntime = "pyxis"
    mounts: Sequence[str] = ()
    """Paths of the nodes that the container sees, ``FROM`` or ``FROM:TO``; ``directory`` is always one."""

    max_restarts: int = 3
    """How often in a row it is requeued when its ranks have failed with nothing new saved."""

    chained: bool = False
    """A stopped run goes on in the next job of a chain, not in this one again."""


def time_limit_seconds(text: str) -> int:
    """Seconds of a SLURM time limit: `MINUTES[:SECONDS]`, `HOURS:MINUTES:SECONDS` or `DAYS-HOURS[:MINUTES[:SECONDS]]`.

    Raises:
        UserError: it is none of these, or zero.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time is {text!r}; give minutes (90), hours (12:00:00) or days (2-00:00:00).")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # minutes come first: 90, 90:30
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    total = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if total == 0:
        raise UserError(f"--time is {text!r}: no time at all.")
    return total


def sbatch_script(options: JobOptions, config: str, overrides: Sequence[str]) -> str:
    """A script that ``sbatch`` takes as it is: everything of the run stands in it.

    Args:
        config: path of the run's config, as seen from ``options.directory``.
        overrides: keys of the config, for `pretrain train`.
    """
    template = files("pipeline.launch").joinpath("train.sbatch").read_text(encoding="utf-8")
    body = template[template.index("set -eo pipefail") :]
    before, rest = body.split("# Settings: ", 1)
    _, after = rest.split("# End of the settings.\n", 1)
    arguments = shlex.join(["set", "--", config, *overrides]) + ' "$@"'
    lines = [
        "#!/usr/bin/env bash",
        "# Written by `pretrain launch slurm`; docs/launch.md says what it does.",
        "",
        *(f"#SBATCH {directive}" for directive in _directives(options)),
        "",
        f"{before}# Settings of this run.",
        *_settings(options),
        arguments,
    ]
    return "\n".join(lines) + "\n" + after


def _directives(options: JobOptions) -> list[str]:
    """Options of sbatch, one a line, in the quotes that SLURM understands."""
    named = {
        "job-name": options.name,
        "chdir": options.directory,
        "nodes": options.nodes,
        "ntasks-per-node": options.ranks_per_node,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.memory,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "signal": f"USR1@{options.signal_seconds}" if options.signal_seconds else None,
        "open-mode": "append",
        "output": options.log,
    }
    words = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return [shlex.quote(word) for word in [*words, "--requeue", *options.more]]


def _settings(options: JobOptions) -> list[str]:
    """Lines of bash between `set -eo pipefail` and the run."""
    lines = []
    if options.modules:
        lines.append("type module >/dev/null 2>&1 || . /etc/profile || true")
        lines.append(shlex.join(["module", "load", *options.modules]))
    lines += options.setup
    if options.commands_directory:
        lines.append(f'export PATH={shlex.quote(options.commands_directory)}:"$PATH"')
    if options.interface:
        name = shlex.quote(options.interface)
        lines.append(f"export NCCL_SOCKET_IFNAME={name} GLOO_SOCKET_IFNAME={name}")
    if options.container:
        lines.append(f"srun+=({shlex.join(_container_words(options, options.container))})")
    lines.append("chained=yes" if options.chained else f"max_restarts={options.max_restarts}")
    return lines


def _container_words(options: JobOptions, image: str) -> list[str]:
    """What stands between `srun` and `pretrain`."""
    mounts = [options.directory, *options.mounts]
    if options.container_runtime == "pyxis":
        binds = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        return [f"--container-image={image}", f"--container-mounts={binds}", f"--container-workdir={options.directory}"]
    devices = ["--nv"] if options.gpus_per_node else []
    return ["apptainer", "exec", *devices, "--bind", ",".join(mounts), "--pwd", options.directory, image]
