"""wandb: real offline runs, one id for a run directory, and failures that stop nothing."""

from __future__ import annotations

import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.monitor.wandb_sink import WandbSink, find_api_key, resolve_mode, run_id

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                messages.append(record.getMessage())

    handler = Collect()
    logging.getLogger("pretrain").addHandler(handler)
    yield messages
    logging.getLogger("pretrain").removeHandler(handler)


class FakeRun:
    """What wandb.init returns, with the calls recorded."""

    url = "https://example.invalid/run"

    def __init__(self, options: dict[str, Any], step: int) -> None:
        self.id, self.step, self.options = options["id"], step, options
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.calls: list[str] = []
        self.fail = False

    def log(self, data: dict[str, float], step: int) -> None:
        if self.fail:
            raise BrokenPipeError(f"lost, key {KEY}")
        self.logged.append((step, data))

    def finish(self) -> None:
        self.calls.append("finish")

    def mark_preempting(self) -> None:
        self.calls.append("mark_preempting")


class FakeSettings:
    model_fields = ("finish_timeout",)

    def __init__(self, **options: Any) -> None:
        self.options = options


def fake_wandb(monkeypatch: pytest.MonkeyPatch, failing_modes: tuple[str, ...] = (), step: int = 0) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        if options["mode"] in failing_modes:
            raise ConnectionError(f"no route with {KEY} ({options['mode']})")
        runs.append(FakeRun(options, step))
        return runs[-1]

    module = types.ModuleType("wandb")
    module.__dict__.update(init=init, Settings=FakeSettings)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_key_from_the_environment_or_netrc(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert find_api_key(home) is None
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert find_api_key(home) == KEY
    assert find_api_key({**home, "WANDB_BASE_URL": "https://wandb.mine.example:8080"}) is None
    assert find_api_key({**home, "WANDB_API_KEY": " own "}) == "own"
    other = tmp_path / "other"
    other.write_text("this is no netrc")
    assert find_api_key({**home, "NETRC": str(other)}) is None


def test_modes(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert resolve_mode("auto", home) == "offline"
    assert resolve_mode("auto", {**home, "WANDB_API_KEY": KEY}) == "online"
    assert resolve_mode("auto", {**home, "WANDB_IDENTITY_TOKEN_FILE": "token"}) == "online"
    assert resolve_mode("auto", {**home, "WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}) == "offline"
    assert resolve_mode("auto", {**home, "WANDB_MODE": "disabled"}) == "off"
    for mode in ("online", "offline", "off"):
        assert resolve_mode(mode, {**home, "WANDB_MODE": "disabled"}) == mode


def test_one_id_for_the_life_of_a_run_directory(tmp_path: Path) -> None:
    first = run_id(tmp_path / "run")
    assert run_id(tmp_path / "run") == first
    assert (tmp_path / "run" / "wandb_id").read_text() == f"{first}\n"
    assert run_id(tmp_path / "another") != first


def test_real_offline_runs_share_the_id(tmp_path: Path, warnings: list[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for first_step in (0, 10):
        sink = WandbSink(run, mode="auto", project="test")
        assert sink.mode == "offline"
        sink.start({"first_step": first_step, "total_steps": 20}, {"train": {"steps": 20}})
        for step in range(first_step + 1, first_step + 11):
            sink.log({"step": step, "loss": 1.0 / step, "batch_digest": "ab", "mfu": None})
        sink.event("stopped", step=first_step + 10)
        sink.close()
    stored = (run / "wandb_id").read_text().strip()
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert {file.name for file in files} == {f"run-{stored}.wandb"}
    assert sum(file.stat().st_size for file in files) > 1000
    assert warnings == []


def test_off_writes_nothing_and_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(tmp_path, mode="off", project="test")
    sink.start({}, {})
    sink.log({"step": 1, "loss": 1.0})
    sink.event("stopped")
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_online_sends_numbers_under_our_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    runs = fake_wandb(monkeypatch, step=6)
    sink = WandbSink(tmp_path, mode="auto", project="test", run_name="name")
    sink.start({"first_step": 4}, {"seed": 1})
    for step in (5, 6, 7, 7, 6, 8):
        sink.log({"step": step, "loss": float("nan") if step == 8 else 1.0, "batch_digest": "ab", "mfu": None})
    sink.event("checkpoint", step=8)
    sink.event("stopped", step=8)
    sink.close()
    sink.close()
    assert [step for step, _ in runs[0].logged] == [6, 7, 7, 8]
    assert runs[0].logged[0][1] == {"loss": 1.0}
    assert runs[0].calls == ["mark_preempting", "finish"]
    options = runs[0].options
    assert (options["id"], options["resume"], options["mode"]) == (run_id(tmp_path), "allow", "online")
    assert options["dir"] == str(tmp_path)
    assert options["config"]["seed"] == 1
    assert options["settings"].options["finish_timeout"] > 0


def test_what_wandb_lacks_is_sent_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    runs = fake_wandb(monkeypatch, step=6)  # a kill kept steps from 6 on from it
    lines = [{"step": step, "loss": float(step), "time": "2026"} for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sink = WandbSink(tmp_path, mode="auto", project="test")
    sink.start({"first_step": 8}, {})
    sink.log({"step": 9, "loss": 9.0})
    assert runs[0].logged == [(step, {"loss": float(step)}) for step in (6, 7, 8, 9)]


def test_online_without_a_key_goes_offline_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    runs = fake_wandb(monkeypatch)
    sink = WandbSink(tmp_path, mode="online", project="test")
    sink.start({}, {})
    assert [run.options["mode"] for run in runs] == ["offline"]
    assert "no API key: set WANDB_API_KEY or run `wandb login`. Training goes on" in warnings[0]
    assert "offline" in warnings[1]


def test_no_network_goes_offline_and_shows_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    runs = fake_wandb(monkeypatch, failing_modes=("online",))
    sink = WandbSink(tmp_path, mode="online", project="test")
    sink.start({}, {})
    sink.log({"step": 1, "loss": 1.0})
    assert runs[0].options["mode"] == "offline"
    assert runs[0].logged == [(1, {"loss": 1.0})]
    assert "could not start online: ConnectionError: no route with [API key]" in warnings[0]
    assert KEY not in "".join(warnings)


def test_every_failure_warns_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    runs = fake_wandb(monkeypatch)
    sink = WandbSink(tmp_path, mode="online", project="test")
    sink.start({}, {})
    runs[0].fail = True
    for step in range(1, 5):
        sink.log({"step": step, "loss": 1.0})
    sink.close()
    assert warnings == [
        "wandb: stopped at step 1: BrokenPipeError: lost, key [API key]. "
        "Training goes on; metrics are in metrics.jsonl."
    ]


def test_a_wandb_that_is_not_there_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(tmp_path, mode="offline", project="test")
    sink.start({}, {})
    sink.log({"step": 1, "loss": 1.0})
    sink.close()
    assert len(warnings) == 1
    assert "could not start offline: ModuleNotFoundError" in warnings[0]
