"""The process beside a rank that writes its snapshots to disk: ``python -m`` this, with two file descriptors.

It must start in no time and hold no memory of its own: no torch here. Requests come as lines of JSON over a socket; the
snapshot is memory that both processes map. It ends with its rank, in the middle of a file too: what has no description
is no checkpoint.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import xxhash

from pipeline.checkpoints.publishing import publish, tidy
from pipeline.checkpoints.retention import Retention

_CHUNK_BYTES = 4 << 20
_NICENESS = 10  # training comes first
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Answer requests until the rank is gone."""
    channel_number, memory_number, parent = map(int, arguments)
    die_with(parent)
    os.nice(_NICENESS)
    with socket.socket(fileno=channel_number) as channel, channel.makefile("rb") as requests:
        for line in requests:
            answer = _answer(json.loads(line), memory_number, channel)
            channel.sendall(json.dumps(answer).encode() + b"\n")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux); elsewhere the socket's end tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def _answer(request: dict[str, Any], memory_number: int, channel: socket.socket) -> dict[str, Any]:
    try:
        if request["do"] == "write":
            return _write(Path(request["path"]), memory_number, request["num_bytes"], request["room_bytes"], channel)
        return _publish(request)
    except OSError as error:
        place = f": {error.filename}" if error.filename is not None else ""
        return {"error": f"{error.strerror or error}{place}"}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _write(path: Path, memory_number: int, num_bytes: int, room_bytes: int, channel: socket.socket) -> dict[str, Any]:
    """The snapshot as a file, on disk when this returns; its size and checksum.

    Args:
        room_bytes: what must be free, for the files of all ranks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = xxhash.xxh3_128()
    with (
        mmap.mmap(memory_number, num_bytes, prot=mmap.PROT_READ) as memory,
        memoryview(memory) as snapshot,
        open(path, "wb", buffering=0) as file,
    ):
        try:
            _check_room(path, room_bytes)
            for start in range(0, num_bytes, _CHUNK_BYTES):
                _end_with(channel)
                with snapshot[start : start + _CHUNK_BYTES] as chunk:
                    checksum.update(chunk)
                    _write_whole(file.fileno(), chunk)
            os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)  # the run's other files need room now, not when all ranks have failed
            raise OSError(error.errno, error.strerror, str(path)) from None
    return {"bytes": num_bytes, "xxh3_128": checksum.hexdigest()}


def _check_room(path: Path, room_bytes: int) -> None:
    """Fail before the disk is full: the rank writes its metrics to the same one.

    Space is looked at, not reserved: writing into what ``fallocate`` has reserved took ext4 ten times as long.
    """
    disk = os.statvfs(path)
    if disk.f_bavail * disk.f_frsize < room_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _write_whole(descriptor: int, chunk: memoryview) -> None:
    written = 0
    while written < len(chunk):  # a disk that is nearly full takes a part, and the error comes with the rest
        with chunk[written:] as rest:
            written += os.write(descriptor, rest)


def _end_with(channel: socket.socket) -> None:
    """Leave if the rank is gone: it sends nothing while it waits for an answer, so what can be read is the end."""
    readable, _, _ = select.select([channel], [], [], 0)
    if readable:
        os._exit(1)


def _publish(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    publish(Path(request["temporary"]), path, request["description"])
    try:
        deleted = tidy(path.parent.parent, request["description"]["step"], Retention(**request["retention"]))
    except OSError as error:
        return {"deleted": [], "warning": f"{error.strerror or error}: {error.filename}"}
    return {"deleted": deleted}


if __name__ == "__main__":
    main(sys.argv[1:])
