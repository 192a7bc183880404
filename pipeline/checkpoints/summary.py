"""What a run directory has of checkpoints, without reading what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.checkpoints.directory import list_directories
from pipeline.checkpoints.meta import META_NAME, checkpoint_directory, read_meta
from pipeline.checkpoints.retention import Retention


def summarize(run_directory: Path, retention: Retention) -> list[dict[str, Any]]:
    """A row for every checkpoint, by step: ``step``, ``saved_at`` (seconds since 1970), ``bytes``, ``world_size``,
    ``strategy``, ``kept`` (reasons) and ``problem``; what its description does not tell is None."""
    steps = list_directories(run_directory)
    reasons = retention.reasons(steps)
    return [_row(checkpoint_directory(run_directory, step), step, reasons[step]) for step in steps]


def _row(path: Path, step: int, kept: list[str]) -> dict[str, Any]:
    row = {"step": step, "saved_at": None, "bytes": None, "world_size": None, "strategy": None, "kept": kept}
    try:
        meta = read_meta(path, way_out="")
        num_bytes = sum(facts["bytes"] for facts in meta.files.values())
        saved_at = (path / META_NAME).stat().st_mtime
    except (UserError, OSError, KeyError, TypeError) as error:
        return {**row, "problem": str(error).strip()}
    told = {"saved_at": saved_at, "bytes": num_bytes, "world_size": meta.world_size, "strategy": meta.strategy}
    return {**row, **told, "problem": None}
