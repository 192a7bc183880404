"""One line of JSON -> a record, or the reason why not."""

from __future__ import annotations

import json
from typing import Any


class BadRecordError(Exception):
    """A record that cannot be used; ``reason`` is the key it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BadRecordError: ``bad_encoding`` (not UTF-8), or ``unreadable`` (not JSON, not an object).
    """
    import orjson

    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        # orjson refuses what Python's parser takes: NaN, integers beyond 64 bits, half of a surrogate pair.
        try:
            value = json.loads(decode(line))
        except (ValueError, RecursionError) as error:
            raise BadRecordError("unreadable", f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRecordError("unreadable", f"a JSON {type(value).__name__}, not an object")
    return value


def decode(content: bytes) -> str:
    """UTF-8, a byte order mark taken off.

    Raises:
        BadRecordError: ``bad_encoding``.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = content[error.start : error.start + 1].hex()
        raise BadRecordError("bad_encoding", f"not UTF-8: byte 0x{wrong} at {error.start}") from None


def text_of(record: dict[str, Any], field: str) -> str:
    """The text of a record.

    Raises:
        BadRecordError: ``missing_text`` (no such field, or not a string), ``bad_encoding`` (half of a surrogate pair).
    """
    if field not in record:
        raise BadRecordError("missing_text", f"no field {field!r}; it has {', '.join(record) or 'none'}")
    text = record[field]
    if not isinstance(text, str):
        raise BadRecordError("missing_text", f"field {field!r} is {type(text).__name__}, not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecordError("bad_encoding", f"half of a surrogate pair at character {error.start}") from None
    return text
