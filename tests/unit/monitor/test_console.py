"""What a person or a log file sees."""

from __future__ import annotations

import io
import logging
import math
import sys

import pytest

from pipeline.monitor.console import ConsoleSink, format_event, format_line

LINE = {
    "step": 120,
    "loss": 6.1234,
    "lr": 1.0e-3,
    "grad_norm": 0.849,
    "tokens_per_second": 12_345.0,
    "data_wait_fraction": 0.001,
    "batch_digest": "abc",
    "mfu": None,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_plain_line_says_all_that_was_measured() -> None:
    expected = "step 120/1000 loss 6.123 lr 1.0e-3 grad 0.85 12.3k tok/s wait 0.1 % eta 3:20"
    assert format_line(LINE, 1000, 200.0) == expected
    assert format_line({"step": 4, "lr": 0.0}, 4) == "step 4/4 lr 0"
    more = {"step": 2, "loss": math.nan, "mfu": 0.412, "memory_gb": 3.21, "validation_loss": 5.912}
    text = format_line({**more, "validation_perplexity": 369.44}, 4)
    assert text == "step 2/4 loss nan mfu 41.2 % mem 3.2 GB validation loss 5.912 perplexity 369.4"
    shares = {"validation_accuracy_mlm": 0.1234, "validation_recall_rtd": 0.5, "validation_accuracy_rtd": 1.0}
    assert format_line({**more, **shares}, 4).endswith("loss 5.912 mlm 12.3 % right rtd 100.0 % right")


def test_a_loss_of_several_terms_is_followed_by_them() -> None:
    losses = {"loss": 6.816, "loss_mlm": 6.123, "loss_nsp": 0.693, "loss_scale": 65536.0}
    held_out = {"validation_loss": 5.9, "validation_loss_mlm": 5.3, "validation_loss_nsp": None}
    text = format_line({"step": 2, **losses, **held_out, "validation_perplexity": 200.3}, 4)
    assert text == "step 2/4 loss 6.816 (mlm 6.123 nsp 0.693) validation loss 5.900 (mlm 5.300) perplexity 200.3"
    assert format_line({"step": 2, "loss": 6.5, "loss_scale": 65536.0}, 4) == "step 2/4 loss 6.500"


def test_an_event_line_has_its_facts() -> None:
    assert format_event("checkpoint", {"step": 200, "seconds": 1.5}) == "checkpoint at step 200: seconds=1.5"
    assert format_event("world_size_changed", {}) == "world size changed"


def test_plain_lines_in_a_log() -> None:
    stream, clock = io.StringIO(), Clock()
    sink = ConsoleSink(stream, clock)
    sink.start({"first_step": 100, "total_steps": 200}, {})
    clock.now = 20.0
    sink.log({**LINE, "step": 110})
    sink.event("checkpoint", step=110)
    sink.log({"step": 110, "validation_loss": 5.0})
    sink.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("step 110/200 loss 6.123")
    assert lines[0].endswith("eta 3:00")
    assert lines[1] == "checkpoint at step 110"
    assert lines[2] == "step 110/200 validation loss 5.000 eta 3:00"
    assert len(lines) == 3


def test_the_time_left_of_a_run_with_a_budget_of_time() -> None:
    stream, clock = io.StringIO(), Clock()
    sink = ConsoleSink(stream, clock)
    sink.start({"first_step": 0, "total_steps": 1_000_000}, {"schedule": {"budget_hours": 2.0}})
    clock.now = 1800.0
    sink.log({"step": 100, "loss": 6.5, "budget_share": 0.25})
    assert stream.getvalue() == "step 100/1000000 loss 6.500 budget 25.0 % eta 1:30:00\n"


def test_the_bar_of_a_run_with_a_budget_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    sink = ConsoleSink(Terminal(), Clock())
    sink.start({"first_step": 0, "total_steps": 1000}, {"schedule": {"budget_hours": 2.0}})
    shares = []
    for step, budget_share in ((10, 0.5), (20, 1.1)):
        sink.log({"step": step, "loss": 6.5, "budget_share": budget_share})
        shares.append(sink._progress.tasks[0].completed)
    sink.close()
    assert shares == [0.5, 1.0]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("pretrain")
    logger.addHandler(handler)
    try:
        sink = ConsoleSink(clock=clock)
        sink.start({"first_step": 0, "total_steps": 1000}, {})
        assert handler.stream is not stream
        clock.now = 24.0
        sink.log({"step": 100, "loss": 6.5, "tokens_per_second": 2e4, "validation_loss": 6.75})
        sink.log({"step": 120, "loss": 6.25, "tokens_per_second": 2e4})
        sink.event("checkpoint", step=120)
        logger.warning("a line of the log")
        sink.close()
        sink.close()
        assert handler.stream is stream
    finally:
        logger.removeHandler(handler)
    text = stream.getvalue()
    for part in ("step 120/1000", "loss 6.250", "validation 6.750", "20.0k tok/s", "eta 2:56"):
        assert part in text
    for line in ("step 100/1000 loss 6.500", "checkpoint at step 120", "a line of the log"):
        assert line in text


def test_a_step_without_a_loss_moves_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    sink = ConsoleSink()
    sink.start({"first_step": 0, "total_steps": 1000}, {})
    sink.log({"step": 120, "loss": 6.25})
    sink.log({"step": 130, "loss": None})  # it predicted nothing
    sink.close()
    assert "step 130/1000" in stream.getvalue()
