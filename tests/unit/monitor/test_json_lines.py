"""JSON lines: valid always, torn lines passed over."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.monitor.events import append_event, read_events
from pipeline.monitor.json_lines import decode_line, encode_line, number, plain_value, read_records


def strict_loads(line: bytes) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_non_finite_numbers_become_strings_and_come_back() -> None:
    line = encode_line({"loss": math.nan, "up": math.inf, "down": np.float32(-np.inf), "lr": 0.1, "nested": [math.nan]})
    assert strict_loads(line) == {"loss": "nan", "up": "inf", "down": "-inf", "lr": 0.1, "nested": ["nan"]}
    record = decode_line(line)
    assert record is not None
    assert math.isnan(number(record["loss"]) or 0.0)
    assert number(record["up"]) == math.inf
    assert number(record["down"]) == -math.inf


def test_scalars_of_arrays_become_numbers() -> None:
    torch = pytest.importorskip("torch")
    values = {"a": np.int64(3), "b": torch.tensor(2.5), "c": np.array(7), "d": None, "e": True, "f": Path("x/y")}
    assert plain_value(values) == {"a": 3, "b": 2.5, "c": 7, "d": None, "e": True, "f": "x/y"}


def test_what_json_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cannot write .* \(ndarray\) as JSON"):
        encode_line({"x": np.zeros(2)})
    with pytest.raises(TypeError, match=r"\(set\) as JSON"):
        encode_line({"x": {1}})


def test_number_of_text_and_null_is_none() -> None:
    assert [number(x) for x in ("abc", None, True, "1.5")] == [None] * 4
    assert number(3) == 3.0


def test_torn_lines_are_passed_over_at_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    first, second = encode_line({"step": 1, "é": "ü"}), encode_line({"step": 2, "é": "ü"})
    for cut in range(len(second) + 1):
        path.write_bytes(first + second[:cut])
        steps = [record["step"] for record in read_records(path)]
        assert steps == ([1, 2] if cut >= len(second) - 1 else [1])
    assert read_records(tmp_path / "absent.jsonl") == []


def test_events_append_with_time_and_survive_a_torn_line(tmp_path: Path) -> None:
    append_event(tmp_path / "run", "started", world_size=2)
    with open(tmp_path / "run" / "events.jsonl", "ab") as file:
        file.write(b'{"time": "2026-01-')
    written = append_event(tmp_path / "run", "resumed", step=40, reason=math.nan)
    events = read_events(tmp_path / "run")
    assert [(event["event"], event["step"]) for event in events] == [("started", None), ("resumed", 40)]
    assert events[0]["world_size"] == 2
    assert events[1]["reason"] == "nan"
    assert written["time"].endswith("+00:00")
    assert read_events(tmp_path) == []
