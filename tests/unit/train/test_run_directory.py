"""Entering a run directory."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.train.run_directory import check_run_directory, enter_run_directory


def test_a_rank_may_look_while_rank_0_enters(tmp_path: Path) -> None:
    directories = [tmp_path / str(number) for number in range(100)]
    refused: list[UserError] = []
    entered = threading.Event()

    def look() -> None:
        while not entered.is_set():
            for directory in directories:
                try:
                    check_run_directory(directory)
                except UserError as error:
                    refused.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for directory in directories:
        enter_run_directory(RunConfig(run_directory=str(directory)), 0)
    entered.set()
    thread.join()
    assert refused == []
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / ".config.yaml.123.tmp").touch()
    check_run_directory(directory)


def test_a_changed_config_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    config = RunConfig(run_directory=str(tmp_path / "run"))
    directory = enter_run_directory(config, 0)
    before = (directory / "config.yaml").read_text()
    enter_run_directory(config, 5)
    assert [path.name for path in directory.glob("config.before*")] == []
    for workers, kept in ((1, "config.before-step-00000005.yaml"), (2, "config.before-step-00000005.2.yaml")):
        enter_run_directory(replace(config, data=replace(config.data, workers=workers)), 5)
        assert (directory / kept).exists()
    assert (directory / "config.before-step-00000005.yaml").read_text() == before
    assert '"event":"config_changed"' in (directory / "events.jsonl").read_text().replace(" ", "")


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"is not empty and holds no run \(no config\.yaml\); name a new directory"):
        check_run_directory(tmp_path)
