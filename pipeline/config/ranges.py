"""Ranges of numbers: each check yields a line for every value outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterator


def at_least(minimum: int, **values: int | None) -> Iterator[str]:
    """Values below a minimum; ``section__key=value`` names the key."""
    for name, value in values.items():
        if value is not None and value < minimum:
            yield f"{name.replace('__', '.')}: {value} is below {minimum}."


def at_most(maximum: int, **values: int) -> Iterator[str]:
    """Values above a maximum."""
    for name, value in values.items():
        if value > maximum:
            yield f"{name.replace('__', '.')}: {value} is above {maximum}."


def share(zero: bool = True, one: bool = True, **values: float) -> Iterator[str]:
    """Values outside [0, 1], or outside the half-open or open interval."""
    for name, value in values.items():
        inside = (value >= 0 if zero else value > 0) and (value <= 1 if one else value < 1)
        if not inside:
            interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
            yield f"{name.replace('__', '.')}: {value} is outside {interval}."


def positive(**values: float) -> Iterator[str]:
    """Values that are not finite and above 0."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            yield f"{name.replace('__', '.')}: {value} must be a finite number above 0."


def not_negative(**values: float) -> Iterator[str]:
    """Values that are not finite and 0 or more."""
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            yield f"{name.replace('__', '.')}: {value} must be a finite number, 0 or more."
