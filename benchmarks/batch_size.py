"""How many rows a step: the fastest of a few numbers that fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Final

import torch

_WORTH_MORE_MEMORY: Final = 1.02
"""A batch twice as large must be so much faster for the search to go on."""


def fastest_rows(measure: Callable[[int], float], candidates: Sequence[int]) -> int:
    """The fastest number of rows, tried from the smallest up until memory or the gain ends.

    Args:
        measure: real tokens a second with so many rows; may raise ``torch.OutOfMemoryError``.

    Raises:
        torch.OutOfMemoryError: not even the smallest fits.
    """
    best_rows, best_speed = candidates[0], 0.0
    for number, rows in enumerate(candidates):
        try:
            speed = measure(rows)
        except torch.OutOfMemoryError:
            if number == 0:
                raise
            break
        finally:
            release_memory()
        print(f"    {rows} rows: {speed:,.0f} real tokens/s", flush=True)
        if speed < best_speed * _WORTH_MORE_MEMORY:
            break
        best_rows, best_speed = rows, speed
    return best_rows


def release_memory() -> None:
    """What nothing refers to any more goes back to the device; nothing to do on a CPU."""
    if torch.cuda.is_available():
        gc.collect()  # a module and its hooks refer to each other
        torch.cuda.empty_cache()
