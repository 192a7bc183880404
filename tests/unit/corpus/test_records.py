"""A line of JSON is a record or has a reason not to be one."""

from __future__ import annotations

import pytest

from pipeline.corpus.records import BadRecordError, decode, parse_object, text_of


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"text": "a"}', {"text": "a"}),
        (b'{"text": "a", "score": NaN}', None),
        (b'{"text": "a", "n": 123456789012345678901234567890}', None),
        (b'{"text": "\\ud83d\\ude00"}', {"text": "\U0001f600"}),
    ],
)
def test_good_lines(line: bytes, value: dict | None) -> None:
    parsed = parse_object(line)
    assert text_of(parsed, "text")
    assert value is None or parsed == value


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "a"', "unreadable", "not JSON"),
        (b"plain words", "unreadable", "not JSON"),
        (b"[1, 2]", "unreadable", "a JSON list, not an object"),
        (b'{"text": "\xff"}', "bad_encoding", "byte 0xff at 10"),
        (b'{"title": "a"}', "missing_text", "no field 'text'; it has title"),
        (b'{"text": 5}', "missing_text", "field 'text' is int, not text"),
        (b'{"text": null}', "missing_text", "is NoneType"),
        (b'{"text": "half \\ud83d"}', "bad_encoding", "half of a surrogate pair at character 5"),
    ],
)
def test_bad_lines(line: bytes, reason: str, detail: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        text_of(parse_object(line), "text")
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_a_byte_order_mark_is_no_text() -> None:
    assert decode("\ufeffé".encode()) == "é"
