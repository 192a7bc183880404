"""Files of a checkpoint, written at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.files import write_json_atomically
from pipeline.checkpoints.meta import META_NAME, CheckpointMeta, describe
from pipeline.checkpoints.pieces import Piece
from pipeline.checkpoints.snapshot import Snapshot


def write_rank_file(path: Path, pieces: Sequence[Piece]) -> int:
    """A file as a rank writes it; number of its bytes."""
    snapshot = Snapshot()
    snapshot.take(pieces)
    path.write_bytes(os.pread(snapshot.descriptor, snapshot.num_bytes, 0))
    snapshot.close()
    return snapshot.num_bytes


def write_meta(directory: Path, meta: CheckpointMeta) -> None:
    """What makes the directory a checkpoint."""
    write_json_atomically(directory / META_NAME, describe(meta))
