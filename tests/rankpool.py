"""A pool of rank processes that stay alive between tests.

Importing torch, lightning and deepspeed costs a process about four seconds, so a two-process test that starts its own
ranks costs more than ten. Here the ranks are started once; each call gives them a fresh environment (rank, world size,
a new port) and, when it is over, takes down what a run leaves behind in a process: process groups, DeepSpeed's global
state, signal handlers, environment, working directory. See `docs/development.md`.

Run as a module (`python -m tests.rankpool FILE_DESCRIPTOR MODULE...`) this file is one rank.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

PRELOADED_MODULES = ("torch", "lightning.pytorch", "deepspeed", "transformers")
"""What every rank imports before its first call; a module that is not installed is left out."""

GRACE_SECONDS = 3.0
"""How long the other ranks may go on after one has failed: they may be waiting in a collective for ever."""

_REPOSITORY = Path(__file__).resolve().parent.parent
_LAUNCHER_PREFIXES = ("SLURM_", "PMI_", "TORCHELASTIC_", "PET_")
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_STACK_SIGNAL = signal.SIGUSR2
_RESTORED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class RankError(RuntimeError):
    """A call failed in a rank. ``rank`` is the first that failed; the message has the traceback of every failed one."""

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class RankTimeoutError(RankError):
    """Some rank did not return in time; its stack was written to standard error."""


@dataclass
class _Rank:
    """The parent's side of one rank process."""

    process: subprocess.Popen[bytes]
    connection: Connection

    def kill(self) -> None:
        # The rank leads a session of its own, so its loader workers go with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


class RankPool:
    """Rank processes on this machine's CPU, started when first needed and kept for later calls.

    A context manager; :meth:`close` ends the ranks. Not thread-safe.
    """

    def __init__(self, preloaded_modules: Iterable[str] = PRELOADED_MODULES) -> None:
        self._preloaded_modules = tuple(preloaded_modules)
        self._ranks: list[_Rank] = []

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the ranks alive, by rank."""
        return [rank.process.pid for rank in self._ranks]

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        world_size: int = 2,
        timeout_seconds: float = 120.0,
        environ: Mapping[str, str] | None = None,
        **keywords: Any,
    ) -> list[Any]:
        """Call ``function(*args, **keywords)`` in ranks ``0 .. world_size-1`` at once and return their results by rank.

        Args:
            function: defined at module level; it, its arguments and its result are pickled.
            environ: variables for this call alone.

        Raises:
            RankError: the function raised, or the process died, in some rank.
            RankTimeoutError: a rank needed longer than ``timeout_seconds``.
        """
        self._grow(world_size)
        port = free_port()
        for number, rank in enumerate(self._ranks[:world_size]):
            variables = launcher_environment(number, world_size, port) | dict(environ or {})
            rank.connection.send_bytes(pickle.dumps((variables, pickle.dumps((function, args, keywords)))))
        outcomes = self._collect(world_size, timeout_seconds)
        missing = [number for number in range(world_size) if number not in outcomes]
        failures = {number: text for number, (succeeded, text) in outcomes.items() if not succeeded}
        if failures:
            if missing:
                self.close()
            text = "\n".join(f"rank {number} of {world_size}: {text}" for number, text in failures.items())
            raise RankError(text, next(iter(failures)))
        if missing:
            self._explain_and_kill(missing)
            raise RankTimeoutError(
                f"rank {missing[0]} of {world_size} did not return in {timeout_seconds} s", missing[0]
            )
        return [outcomes[number][1] for number in range(world_size)]

    def close(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.kill()
        self._ranks.clear()

    def _grow(self, world_size: int) -> None:
        if any(rank.process.poll() is not None for rank in self._ranks):
            self.close()
        while len(self._ranks) < world_size:
            self._ranks.append(_start_rank(self._preloaded_modules))

    def _collect(self, world_size: int, timeout_seconds: float) -> dict[int, tuple[bool, Any]]:
        """Outcomes by rank in order of arrival: (succeeded, result or failure text); absent ranks did not return."""
        waiting = {self._ranks[number].connection: number for number in range(world_size)}
        outcomes: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout_seconds
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            for connection in wait(list(waiting), remaining):
                assert isinstance(connection, Connection)
                number = waiting.pop(connection)
                try:
                    outcomes[number] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    outcomes[number] = (False, f"the process died with status {self._ranks[number].process.wait()}")
                if not outcomes[number][0]:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return outcomes

    def _explain_and_kill(self, missing: list[int]) -> None:
        for number in missing:
            with contextlib.suppress(ProcessLookupError):
                self._ranks[number].process.send_signal(_STACK_SIGNAL)
        time.sleep(0.3)
        self.close()


def launcher_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would set for a rank of a single machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the variables of any launcher that the tests themselves were started by."""
    return {k: v for k, v in environ.items() if k not in _LAUNCHER_NAMES and not k.startswith(_LAUNCHER_PREFIXES)}


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_rank(preloaded_modules: tuple[str, ...]) -> _Rank:
    ours, theirs = Pipe()
    settings = {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(_REPOSITORY),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.rankpool", str(theirs.fileno()), *preloaded_modules],
        env=without_launcher(os.environ) | settings,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    return _Rank(process, ours)


# What follows runs in the ranks.


def _serve(connection: Connection, preloaded_modules: Iterable[str]) -> None:
    """Answer calls until the parent closes the connection."""
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    faulthandler.register(_STACK_SIGNAL, all_threads=True)
    for name in preloaded_modules:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    while True:
        try:
            variables, call = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(_answer(variables, call))


def _answer(variables: dict[str, str], call: bytes) -> bytes:
    """Run one call between set-up and tear-down; the pickled outcome."""
    environ, directory = dict(os.environ), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in _RESTORED_SIGNALS}
    os.environ.update(variables)
    try:
        function, args, keywords = pickle.loads(call)
        answer = pickle.dumps((True, function(*args, **keywords)))
    except BaseException:  # SystemExit and KeyboardInterrupt too: the caller must hear of every end
        answer = pickle.dumps((False, traceback.format_exc()))
    try:
        take_down_distributed()
    except BaseException:
        answer = pickle.dumps((False, "in the tear-down after the call:\n" + traceback.format_exc()))
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environ)
    return answer


def take_down_distributed() -> None:
    """Forget all process groups, so that the next run in this process can start others, of any world size."""
    if "torch" not in sys.modules:
        return
    import torch

    if "deepspeed" in sys.modules:
        _take_down_deepspeed()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()


def _take_down_deepspeed() -> None:
    import torch
    from deepspeed import comm
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import Init

    # ZeRO-3 replaces the linear function of torch and never puts it back.
    torch.nn.functional.linear = getattr(Init, "linear_bk", torch.nn.functional.linear)
    # It counts modules and parameters for the life of the process and compares these numbers between ranks,
    # which differ once a rank has taken part in more runs than another.
    parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    Init.param_id = Init.num_persisted_parameters = Init.num_persisted_elements = 0
    parameter_offload.FWD_MODULE_STACK.clear()  # else it keeps every model alive
    if comm.comm.cdb is not None:
        if torch.distributed.is_initialized():
            comm.destroy_process_group()  # torch's groups and those that deepspeed.utils.groups remembers
        # The backend object goes on saying that it is initialised, so the next init_distributed would do nothing.
        comm.comm.cdb = None


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2:])
