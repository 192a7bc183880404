"""Log lines: who prints what, on standard error."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from pipeline.base.logs import configure_logging, get_logger


@pytest.fixture(autouse=True)
def logger_put_back() -> Iterator[None]:
    logger = get_logger()
    state = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = state[0], state[2]
    logger.setLevel(state[1])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "<time> ", line) for line in captured.err.splitlines()]


def test_rank_0_informs_without_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(rank=0, world_size=4)
    get_logger().info("step %d", 3)
    get_logger("data").warning("slow")
    assert lines(capsys) == ["<time> step 3", "<time> warning: slow"]


def test_other_ranks_only_warn_and_say_who_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(rank=2, world_size=4)
    get_logger().info("step 3")
    get_logger("data").error("lost")
    assert lines(capsys) == ["<time> [rank 2] error: lost"]


def test_an_exception_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    try:
        raise ValueError("why")
    except ValueError:
        get_logger().exception("it failed")
    assert lines(capsys)[0] == "<time> error: it failed"
    configure_logging()
    get_logger().error("x", exc_info=ValueError("why"))
    assert lines(capsys)[-1] == "ValueError: why"


def test_configuring_again_does_not_print_twice_nor_reach_other_loggers(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    root: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: root.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        get_logger().info("once")
    finally:
        logging.getLogger().removeHandler(handler)
    assert lines(capsys) == ["<time> once"]
    assert root == []
