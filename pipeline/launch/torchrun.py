"""`pretrain launch torchrun`: the ranks of a run on this machine, one process a GPU.

torchrun starts the ranks and ends all of them when one fails, to start them again as often as it may. Its own answer
to a signal is a traceback and status 1, even if every rank saved and left in peace; so signals go past it, to the
ranks, which stop at the end of their step.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from pipeline.base.directory_lock import refuse_if_held
from pipeline.base.errors import UserError
from pipeline.config.derived import batch_plan
from pipeline.config.loading import load_run_config

SHUTDOWN_SECONDS = 300
"""How long torchrun lets the other ranks end (and save) before it kills them; its own default is 30."""

_LOOK_SECONDS = 2.0
_STOPPED, _ENDED = "T", "Z"  # states of Linux's process table
_FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def torchrun_command(
    config: Path | str,
    processes: int,
    overrides: Sequence[str] = (),
    python: str = sys.executable,
    max_restarts: int = 0,
) -> list[str]:
    """The command line that runs `pretrain train CONFIG OVERRIDES...` in ``processes`` ranks on this machine."""
    return [
        *(python, "-m", "torch.distributed.run"),
        *("--standalone", f"--nproc-per-node={processes}", f"--max-restarts={max_restarts}"),
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        *("-m", "pipeline.cli", "train", str(config), *overrides),
    ]


def num_visible_gpus(environ: Mapping[str, str], device_directory: Path = Path("/dev")) -> int:
    """NVIDIA GPUs this process may use, found without CUDA: from ``CUDA_VISIBLE_DEVICES``, else the device files."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in device_directory.iterdir())
    names = [name.strip() for name in visible.split(",")]
    # CUDA, too, stops reading at the first invalid entry.
    return next((number for number, name in enumerate(names) if name in ("", "-1")), len(names))


def ranks_environment(environ: Mapping[str, str], processes: int, num_cores: int) -> dict[str, str]:
    """``environ`` with the cores shared out; without ``OMP_NUM_THREADS`` torchrun gives each rank one and warns.

    And without the store that torchrun keeps over restarts: ranks that are started again would find the addresses of
    those before in it (pytorch/pytorch#135712): "Gloo connectFullMesh failed: Connection refused".
    """
    threads = str(max(1, num_cores // processes))
    return {"OMP_NUM_THREADS": threads, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environ}


def launch(
    config: Path | str,
    processes: int | None = None,
    overrides: Sequence[str] = (),
    *,
    accepted_changes: Sequence[str] = (),
    max_restarts: int = 0,
    only_print: bool = False,
) -> int:
    """Train in ``processes`` ranks on this machine and wait for them.

    SIGTERM, SIGUSR1 and the first Ctrl-C make the ranks end their step, save and leave; a second Ctrl-C kills them.

    Args:
        processes: default one a visible GPU, or 1 without GPUs.
        overrides: keys of the config, as arguments of `pretrain train`.
        accepted_changes: keys that may differ from those of the run's checkpoint.
        max_restarts: how often all ranks are started again after one has failed; they go on from the newest checkpoint.
        only_print: print the command and start nothing.

    Returns:
        torchrun's exit status: 0 when every rank ended with 0.

    Raises:
        UserError: the config has problems, its global batch cannot be shared by this many ranks, or the run goes on.
    """
    if processes is None:
        processes = num_visible_gpus(os.environ) or 1
    if processes < 1:
        raise UserError(f"--processes is {processes}; start at least 1 rank.")
    if max_restarts < 0:
        raise UserError(f"--max-restarts is {max_restarts}; give 0 (never start again) or more.")
    checked = load_run_config(config, overrides)
    batch_plan(checked, processes)  # one message here instead of one a rank
    arguments = [*overrides, *(word for key in accepted_changes for word in ("--accept-change", key))]
    command = torchrun_command(config, processes, arguments, max_restarts=max_restarts)
    print(shlex.join(command), flush=True)
    if only_print:
        return 0
    refuse_if_held(Path(checked.run_directory), "run_directory")
    num_cores = len(os.sched_getaffinity(0))
    return run_forwarding_signals(command, ranks_environment(os.environ, processes, num_cores), processes)


def run_forwarding_signals(command: Sequence[str], environ: Mapping[str, str], num_children: int = 0) -> int:
    """Run ``command`` and send the signals that arrive meanwhile to its children; its exit status.

    The command leads a session of its own, so that a terminal's Ctrl-C reaches it only through here. When fewer than
    ``num_children`` children are left and all of them are stopped (SIGSTOP), they are killed: no politer signal reaches
    them, and torchrun would wait for them for as long as it lets ranks save.
    """
    process = subprocess.Popen(command, env=dict(environ), start_new_session=True)
    num_interrupts = 0

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal num_interrupts
        num_interrupts += number == signal.SIGINT
        children = child_processes(process.pid)
        if num_interrupts > 1:
            _send(signal.SIGKILL, [*children, process.pid])
            return
        # Before torchrun has started the ranks there is nothing to save: it may end.
        _send(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM, children or [process.pid])

    previous = {number: signal.signal(number, forward) for number in _FORWARDED_SIGNALS}
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK_SECONDS)
            states = child_states(process.pid)
            if len(states) < num_children and set(states.values()) == {_STOPPED}:
                _send(signal.SIGKILL, list(states))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def child_processes(parent: int, process_directory: Path = Path("/proc")) -> list[int]:
    """Process ids of the children of ``parent`` that are alive."""
    return sorted(child_states(parent, process_directory))


def child_states(parent: int, process_directory: Path = Path("/proc")) -> dict[int, str]:
    """Process id -> state of the children of ``parent`` that are alive, from Linux's process table."""
    children = {}
    for stat in process_directory.glob("[0-9]*/stat"):
        try:
            # pid (name) state parent ...; the name may hold spaces and parentheses.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if int(fields[1]) == parent and fields[0] != _ENDED:
            children[int(stat.parent.name)] = fields[0]
    return children


def _send(number: signal.Signals, process_ids: Sequence[int]) -> None:
    for process_id in process_ids:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(process_id, number)
