"""What a step knows of saves that are under way."""

from __future__ import annotations


class Saves:
    """There are none; `background_saves.py` has those of a run."""

    def news(self) -> tuple[int, int]:
        """Of this rank, for the step's sum over the ranks: (1 if it has done its part, 1 if that failed)."""
        return 0, 0

    def agree(self, num_done: int, num_failed: int) -> None:
        """What the sums of :meth:`news` are; every rank gets the same ones at the same step."""

    def settle(self) -> str | None:
        """Wait until no save is under way; every rank must call it.

        Returns:
            why the last save failed, the same on every rank; None if it did not.
        """
        return None
