"""Which checkpoints of a run are kept, and the deletion of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.directory import delete_checkpoint
from pipeline.checkpoints.meta import checkpoint_directory, list_checkpoints


@dataclass(frozen=True)
class Retention:
    """What a run keeps.

    Of those made at intervals as many are kept as of all, whatever signals have added: what a rollback finds does not
    depend on how often the run was stopped.
    """

    keep_last: int
    """Newest ones."""

    every_steps: int
    """Steps between those made at intervals."""

    keep_every_steps: int = 0
    """Those of multiples of this are kept for ever; 0: none."""

    def reasons(self, steps: Sequence[int]) -> dict[int, list[str]]:
        """Why each of ``steps`` (ascending) is kept; empty for one that is not."""
        newest = set(steps[-self.keep_last :])
        at_intervals = {step for step in steps if step % self.every_steps == 0}
        newest_at_intervals = set(sorted(at_intervals)[-self.keep_last :])
        found: dict[int, list[str]] = {}
        for step in steps:
            rules = {
                "last": step in newest,
                "last at intervals": step in newest_at_intervals,
                "for ever": self.keep_every_steps > 0 and step % self.keep_every_steps == 0,
            }
            found[step] = [name for name, applies in rules.items() if applies]
        return found


def prune(run_directory: Path, retention: Retention, intact_step: int, *, dry_run: bool = False) -> list[int]:
    """Delete the checkpoints that nothing keeps.

    Args:
        intact_step: the newest one known to be whole, which is never deleted.
        dry_run: delete nothing.

    Returns:
        steps of those deleted, ascending.

    Raises:
        OSError: one cannot be deleted.
    """
    reasons = retention.reasons(list_checkpoints(run_directory))
    doomed = [step for step, why in reasons.items() if not why and step != intact_step]
    if not dry_run:
        for step in doomed:
            delete_checkpoint(checkpoint_directory(run_directory, step))
    return doomed
