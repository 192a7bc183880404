"""What offline runs of wandb have in their files: how far an earlier start of the run came.

A file ``run-ID.wandb`` is a log of records as LevelDB writes them: blocks of 32 KiB, in which a record stands whole or
in parts, each part after 4 bytes of checksum, 2 of length and 1 of kind. wandb (0.31) has no reader of them in Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 1 << 15
_PART_BYTES = 7
_FILE_BYTES = 7  # an identification, at the start of the first block
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_TAIL_BLOCKS = 32


def last_offline_step(run_directory: Path, run_id: str) -> int:
    """Last step that offline starts of the run have logged, 0 if none; what a killed one left torn does not count."""
    for path in reversed(_files(run_directory, run_id)):
        num_blocks = -(-path.stat().st_size // _BLOCK_BYTES)
        tail = max(0, num_blocks - _TAIL_BLOCKS)
        for first_block in dict.fromkeys((tail, 0)):
            steps = [step for step in map(_step_of, _records(path, first_block)) if step is not None]
            if steps:
                return steps[-1]
    return 0


def set_empty_files_aside(run_directory: Path, run_id: str) -> None:
    """Rename files without a record, as a start leaves that is killed at once: `wandb sync` refuses all for one."""
    for path in _files(run_directory, run_id):
        if next(_records(path, 0), None) is None:
            path.rename(path.with_suffix(".empty"))


def _files(run_directory: Path, run_id: str) -> list[Path]:
    """Of all offline starts, in order: names begin with the time."""
    return sorted((run_directory / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))


def _records(path: Path, first_block: int) -> Iterator[bytes]:
    """The whole records that begin in or after a block."""
    content = path.read_bytes()[first_block * _BLOCK_BYTES :]
    record: bytes | None = None
    place = 0 if first_block else _FILE_BYTES
    while place + _PART_BYTES <= len(content):
        left_in_block = _BLOCK_BYTES - place % _BLOCK_BYTES
        if left_in_block < _PART_BYTES:  # filled up with zeros
            place += left_in_block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part = content[place + _PART_BYTES : place + _PART_BYTES + length]
        place += _PART_BYTES + length
        if kind in (_WHOLE, _FIRST):
            record = part
        elif kind in (_MIDDLE, _LAST) and record is not None:
            record += part
        else:
            record = None  # the end of one that began before, or no record at all
        if kind in (_WHOLE, _LAST) and record is not None and place <= len(content):
            yield record
            record = None


def _step_of(record: bytes) -> int | None:
    """The step of a record of metrics; None for another one, or what is none."""
    from google.protobuf.message import DecodeError

    # By name: the module has what it finds for the version of protobuf that is installed.
    message = importlib.import_module("wandb.proto.wandb_internal_pb2").Record()
    try:
        message.ParseFromString(record)
    except DecodeError:
        return None
    return int(message.history.step.num) if message.WhichOneof("record_type") == "history" else None
