"""A rank's side of the process that writes its snapshots (`writer_process.py`)."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_END_SECONDS = 5.0
_LEFT_TO_THE_RANK = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""Signals that a scheduler or a terminal sends to all processes of a job: the rank answers them with a save."""


class FileWriter:
    """Starts the process, hands it a request at a time, gets its answer without waiting or with.

    Args:
        memory: file descriptor of the snapshot.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, memory: int) -> None:
        self._channel, theirs = socket.socketpair()
        repository = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(repository), *filter(None, [os.environ.get("PYTHONPATH")])])
        # The child inherits what is blocked, and so never sees these.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_RANK)
        try:
            numbers = map(str, (theirs.fileno(), memory, os.getpid()))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.checkpoints.writer_process", *numbers],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), memory],
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._received = b""
        self._is_asked = False

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, do: str, **request: Any) -> None:
        """Send a request; the answer to the one before must have come."""
        assert not self._is_asked
        self._is_asked = True
        try:
            self._channel.sendall(json.dumps({"do": do, **request}).encode() + b"\n")
        except OSError:  # it is dead, and `answer` says so
            return

    def answer(self, *, wait: bool) -> dict[str, Any] | None:
        """The answer to the request; None if it is not there yet or nothing was asked. A dead process is an error."""
        while self._is_asked:
            if b"\n" in self._received:
                line, _, self._received = self._received.partition(b"\n")
                self._is_asked = False
                answer: dict[str, Any] = json.loads(line)
                return answer
            if not wait and not select.select([self._channel], [], [], 0)[0]:
                return None
            received = self._receive()
            if not received:
                self._is_asked = False
                return {"error": f"the process that writes checkpoints has ended ({self._end()})"}
            self._received += received
        return None

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """End the process, in the middle of a file if need be."""
        self._channel.close()
        self._process.kill()
        self._end()

    def _end(self) -> str:
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # in a call to the disk, which nothing ends
            return "it does not answer"
        return f"status {status}" if status >= 0 else signal.Signals(-status).name
