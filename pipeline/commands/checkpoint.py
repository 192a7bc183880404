"""`pretrain checkpoint ...`: what a run has saved, whether it is intact, what may go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import UserError
from pipeline.commands.parsers import add_command, add_group, add_json
from pipeline.commands.printing import print_lines

if TYPE_CHECKING:
    from pipeline.checkpoints.retention import Retention

_GIGABYTE = 1e9


def add_checkpoint_commands(commands: Any) -> None:
    """Declare them."""
    group = add_group(commands, "checkpoint", "list, verify and prune the checkpoints of a run")
    listed = add_command(group, "list", list_run, "list the checkpoints of a run, and why each is kept")
    verify = add_command(group, "verify", verify_run, "check the size and checksum of every file of the checkpoints")
    verify.add_argument("--step", type=int, metavar="N", help="this one only (default: all)")
    prune = add_command(group, "prune", prune_run, "delete the checkpoints that the run's config does not keep")
    prune.add_argument("--keep-last", type=int, metavar="K", help="in place of checkpoint.keep_last")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    for parser in (listed, verify, prune):
        parser.add_argument("run_directory", type=Path, help="run directory")
        add_json(parser)


def list_run(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.checkpoints.summary import summarize
    from pipeline.monitor.json_lines import utc_time

    rows = summarize(namespace.run_directory, _retention(namespace.run_directory, "list"))
    for row in rows:
        row["saved_at"] = None if row["saved_at"] is None else utc_time(row["saved_at"])
    cells = [("step", "saved at", "GB", "ranks", "strategy", "kept as"), *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    print_lines(lines if rows else ["no checkpoints yet"], {"checkpoints": rows}, namespace.json)
    return 0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    kept = ", ".join(row["kept"]) or "not kept: goes with the next save"
    if row["problem"] is not None:
        return (str(row["step"]), "-", "-", "-", "-", row["problem"])
    gigabytes = f"{row['bytes'] / _GIGABYTE:.3f}"
    return (str(row["step"]), row["saved_at"], gigabytes, str(row["world_size"]), row["strategy"], kept)


def verify_run(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.checkpoints.directory import list_directories
    from pipeline.checkpoints.meta import checkpoint_directory
    from pipeline.checkpoints.verifying import damage_of

    run_directory = namespace.run_directory
    _check_run(run_directory, "verify")
    there = list_directories(run_directory)
    steps = there if namespace.step is None else [namespace.step]
    if not set(steps) <= set(there):
        raise UserError(
            f"checkpoint verify: {run_directory} has no checkpoint of step {namespace.step}; there are "
            f"{', '.join(map(str, there)) or 'none'}."
        )
    damage = {step: damage_of(checkpoint_directory(run_directory, step)) for step in steps}
    lines = [
        line
        for step, problems in damage.items()
        for line in ([f"step {step}: {text}" for text in problems] or [f"step {step}: intact"])
    ]
    facts = [{"step": step, "intact": not problems, "problems": problems} for step, problems in damage.items()]
    print_lines(lines or ["no checkpoints yet"], {"checkpoints": facts}, namespace.json)
    return 2 if any(damage.values()) else 0


def prune_run(namespace: argparse.Namespace, _: list[str]) -> int:
    from dataclasses import replace

    from pipeline.checkpoints.retention import prune
    from pipeline.checkpoints.verifying import newest_intact

    run_directory = namespace.run_directory
    retention = _retention(run_directory, "prune")
    if namespace.keep_last is not None:
        if namespace.keep_last < 1:
            raise UserError(f"checkpoint prune: --keep-last is {namespace.keep_last}; keep at least 1.")
        retention = replace(retention, keep_last=namespace.keep_last)
    intact_step, damage = newest_intact(run_directory)
    if intact_step is None and damage:
        raise UserError(
            f"checkpoint prune: none of the checkpoints of {run_directory} is intact, so nothing is deleted: see "
            f"`pretrain checkpoint verify {run_directory}`."
        )
    deleted = [] if intact_step is None else prune(run_directory, retention, intact_step, dry_run=namespace.dry_run)
    facts = {"deleted": deleted, "dry_run": namespace.dry_run, "newest_intact": intact_step}
    what = "would be deleted" if namespace.dry_run else "deleted"
    print_lines([f"step {step}: {what}" for step in deleted] or ["nothing to delete"], facts, namespace.json)
    return 0


def _check_run(run_directory: Path, command: str) -> None:
    if not (run_directory / "config.yaml").is_file():
        raise UserError(
            f"checkpoint {command}: {run_directory} holds no run (no config.yaml). Give the run_directory of a "
            "training run."
        )


def _retention(run_directory: Path, command: str) -> Retention:
    """What the config of the run keeps."""
    from pipeline.checkpoints.retention import Retention
    from pipeline.config.loading import load_run_config

    _check_run(run_directory, command)
    config = load_run_config(run_directory / "config.yaml").checkpoint
    return Retention(config.keep_last, config.every_steps, config.keep_every_steps)
