"""Files of one JSON object a line, as a killed writer leaves them: every whole line counts, a torn one is passed over.

JSON has no NaN and no infinity, so they are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``: they stay
visible (a loss that became NaN is the most interesting line of a run), any JSON parser reads the file, and
``float(value)`` gives the number back.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def utc_now() -> str:
    """The time in UTC, ISO 8601 with milliseconds, e.g. ``2026-01-31T12:00:00.250+00:00``."""
    return utc_time(time.time())


def utc_time(seconds: float) -> str:
    """Seconds since 1970 as :func:`utc_now` writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def moment(written: Any) -> float | None:
    """Seconds since 1970 of a time as it is written in records; None for anything else."""
    try:
        return datetime.fromisoformat(written).timestamp()
    except (TypeError, ValueError):
        return None


def plain_value(value: Any) -> Any:
    """``value`` as something JSON has: NaN and infinities become strings, 0-d arrays and tensors become numbers.

    Raises:
        TypeError: JSON has no such thing (an array with several elements, a set, an object).
    """
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain_value(value.item())
    raise TypeError(f"cannot write {value!r} ({type(value).__name__}) as JSON")


def number(value: Any) -> float | None:
    """A written value as a float: ``"nan"`` is NaN again; text, booleans, null and absence are None."""
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line of valid JSON with its newline, keys in the order given."""
    return encode_plain_line(plain_value(record))


def encode_plain_line(record: Record) -> bytes:
    """:func:`encode_line` of what :func:`plain_value` has given."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode_line(line: bytes) -> Record | None:
    """The object of a line, or None if the line is torn (or never was an object)."""
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def read_records(path: Path) -> list[Record]:
    """All whole lines of a file, in order; an absent file has none. Torn lines are passed over."""
    if not path.exists():
        return []
    records = [decode_line(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    return [record for record in records if record is not None]


def last_record(path: Path, tail_bytes: int = 1 << 16) -> Record | None:
    """The last whole line, found within the last ``tail_bytes`` however long the file is; None if there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tail_bytes))
        lines = file.read().split(b"\n")
    return next((record for line in reversed(lines) if (record := decode_line(line)) is not None), None)
