"""Checkpoints of a run directory, and what each says of itself.

===========================  ===========================================================================================
``checkpoints/step-...0200/``
``meta.json``                step, tokens seen, fingerprints, the config, the strategy, the files; written last: its
                             presence marks a whole checkpoint
``rank-00000.safetensors``   the pieces of rank 0 (`pieces.py`), and so on for every rank
===========================  ===========================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.base.errors import UserError
from pipeline.base.files import read_json

META_NAME: Final = "meta.json"
FORMAT_VERSION: Final = 2
CHECKSUM_KEY: Final = "checksum"
WAY_OUT: Final = "Delete the directory to resume from an older one."
_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says of itself; ``identity`` is compared on resume (`pipeline/train/identity.py`)."""

    step: int
    tokens_seen: int
    strategy: str
    precision: str
    world_size: int
    identity: dict[str, Any]
    facts: dict[str, Any]
    training_seconds: float = 0.0
    """Time of the run up to here, which a schedule with a time budget goes on from."""

    budget_spent: bool = False
    """The step was the last one of a time budget."""

    bad_steps: dict[str, Any] = field(default_factory=dict)
    """Skipped steps, and what the next decision depends on (`pipeline/train/detector.py`)."""

    loss_scale: dict[str, float] = field(default_factory=dict)
    """fp16: ``scale`` and ``good_steps``, those since the scale was changed; empty otherwise."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The files of the ranks by name, with their ``bytes`` and ``xxh3_128``."""


def checkpoint_directory(run_directory: Path, step: int) -> Path:
    """Where a run keeps its state after ``step``."""
    return run_directory / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run_directory: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending; one without ``meta.json`` is none."""
    matches = (_STEP_NAME.fullmatch(path.name) for path in (run_directory / "checkpoints").glob("step-*"))
    steps = sorted(int(match[1]) for match in matches if match)
    return [step for step in steps if (checkpoint_directory(run_directory, step) / META_NAME).is_file()]


def describe(meta: CheckpointMeta) -> dict[str, Any]:
    """What stands in ``meta.json``."""
    return {"format_version": FORMAT_VERSION, **asdict(meta)}


def checksum_of(description: Mapping[str, Any]) -> str:
    """xxh3_128 of what stands in ``meta.json``, itself (``checksum``) left out; hex."""
    import xxhash

    facts = {name: value for name, value in description.items() if name != CHECKSUM_KEY}
    return xxhash.xxh3_128(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_format(description: Mapping[str, Any], directory: Path) -> None:
    """Refuse a checkpoint of another version of this program.

    Raises:
        UserError: with both numbers and the way out.
        KeyError: there is no format.
        TypeError: the description is no table, or the format no number.
    """
    found = description["format_version"]
    if found == FORMAT_VERSION:
        return
    if found > FORMAT_VERSION:
        advice = "update pretrain."
    else:
        advice = "go on with the version of pretrain that wrote it, which also exports it, or start a new run."
    raise UserError(f"checkpoint {directory} has format {found}; this version reads {FORMAT_VERSION}: {advice}")


def read_meta(directory: Path, way_out: str = WAY_OUT) -> CheckpointMeta:
    """The checkpoint's own description.

    Args:
        way_out: what to do about a damaged one, for the message.

    Raises:
        UserError: missing, damaged or of another format.
    """
    value = read_json(directory / META_NAME, "checkpoint")
    try:
        check_format(value, directory)
        return CheckpointMeta(**{name: value[name] for name in CheckpointMeta.__dataclass_fields__ if name in value})
    except (KeyError, TypeError) as error:
        raise UserError(damaged(directory, f"{META_NAME}: {error!r}", way_out)) from None


def damaged(directory: Path, why: str, way_out: str = WAY_OUT) -> str:
    """The message about a checkpoint that cannot be read."""
    return f"checkpoint {directory} is damaged ({why}). {way_out}"
