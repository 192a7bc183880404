"""From which checkpoint a run goes on: the newest one that is intact; those newer than it are set aside."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.checkpoints.directory import set_aside
from pipeline.checkpoints.meta import checkpoint_directory
from pipeline.checkpoints.verifying import newest_intact
from pipeline.monitor.events import append_event


def newest_intact_checkpoint(run_directory: Path, *, is_first_rank: bool) -> Path | None:
    """The checkpoint to resume from; None if the run has none at all.

    Every rank looks by itself, since there is no process group yet, and reads all files: one that finds what rank 0 is
    just renaming calls it damaged, too. That they agree is checked when the group is there.

    Args:
        is_first_rank: it renames the damaged ones, warns, and notes the event ``checkpoint_damaged``.

    Raises:
        UserError: there are checkpoints, and none is intact; or one has another format.
    """
    step, damage = newest_intact(run_directory)
    found = [f"{checkpoint_directory(run_directory, bad).name} ({'; '.join(texts)})" for bad, texts in damage.items()]
    if step is None and damage:
        raise UserError(
            f"run_directory: {run_directory} has checkpoints, and all of them are damaged: {', '.join(found)}. Put "
            "back from a copy what is missing; or, to begin again at step 0, move them away."
        )
    if is_first_rank:
        for bad, text in zip(damage, found, strict=True):
            aside = set_aside(checkpoint_directory(run_directory, bad))
            facts = {"problems": damage[bad], "set_aside_as": aside.name, "goes_on_from": step}
            append_event(run_directory, "checkpoint_damaged", step=bad, **facts)
            get_logger().warning(
                "checkpoint %s is damaged; the run goes on from step %d instead. It is kept as %s",
                text,
                step,
                aside.name,
            )
    return None if step is None else checkpoint_directory(run_directory, step)
