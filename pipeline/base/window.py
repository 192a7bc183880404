"""Attention of which a token sees a window only."""

from __future__ import annotations

from pipeline.base.jit import kernel


@kernel
def pairs_in_window(length: int, window: int) -> int:
    """Ordered pairs of tokens of a segment, each with itself included, that are at most ``window`` apart."""
    if length <= window:
        return length * length
    return length * (2 * window + 1) - window * (window + 1)
