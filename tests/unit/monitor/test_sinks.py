"""metrics.jsonl: every step once, nothing lost at a kill or a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.run import MonitorConfig
from pipeline.monitor.console import ConsoleSink
from pipeline.monitor.json_lines import encode_line, read_records
from pipeline.monitor.sinks import JsonlSink, make_sinks, read_metrics
from pipeline.monitor.wandb_sink import WandbSink


def started(run_directory: Path, first_step: int = 0) -> JsonlSink:
    sink = JsonlSink(run_directory)
    sink.start({"first_step": first_step, "total_steps": 100}, {})
    return sink


def steps(run_directory: Path) -> list[int]:
    return [record["step"] for record in read_metrics(run_directory)]


def test_a_line_a_step_is_on_disk_at_once(tmp_path: Path) -> None:
    sink = started(tmp_path)
    for step in (10, 20):
        sink.log({"step": step, "loss": 1.0 / step, "batch_digest": "ab"})
        assert steps(tmp_path)[-1] == step
    sink.close()
    sink.close()
    first = read_metrics(tmp_path)[0]
    assert list(first) == ["step", "loss", "batch_digest", "time"]
    assert not (tmp_path / "metrics.superseded.jsonl").exists()


def test_the_same_step_again_adds_to_its_line(tmp_path: Path) -> None:
    sink = started(tmp_path)
    sink.log({"step": 1, "loss": 3.0})
    sink.log({"step": 2, "loss": 2.123456789012345, "validation_loss": None})
    sink.log({"step": 2, "loss": 2.0, "validation_loss": 9})  # shorter than what it replaces
    sink.log({"step": 3, "loss": 1.0})
    sink.close()
    assert [(r["step"], r["loss"], r.get("validation_loss")) for r in read_metrics(tmp_path)] == [
        (1, 3.0, None),
        (2, 2.0, 9),
        (3, 1.0, None),
    ]
    again = started(tmp_path, first_step=3)
    again.log({"step": 3, "validation_loss": 4.0})
    again.close()
    assert read_metrics(tmp_path)[-1]["loss"] == 1.0
    assert read_metrics(tmp_path)[-1]["validation_loss"] == 4.0
    assert steps(tmp_path) == [1, 2, 3]


def test_steps_must_not_decrease_and_need_a_start(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    with pytest.raises(RuntimeError, match="before start"):
        sink.log({"step": 1})
    sink.start({}, {})
    sink.log({"step": 5})
    with pytest.raises(ValueError, match="metrics of step 4 after those of step 5"):
        sink.log({"step": 4})


@pytest.mark.parametrize("resume_step", [0, 1, 3, 5, 9])
def test_resume_moves_later_lines_and_loses_none(tmp_path: Path, resume_step: int) -> None:
    sink = started(tmp_path)
    for step in range(1, 6):
        sink.log({"step": step, "loss": float(step)})
    sink.close()
    written = read_metrics(tmp_path)
    sink = started(tmp_path, first_step=resume_step)
    for step in range(resume_step + 1, 12):
        sink.log({"step": step, "loss": -1.0})
    sink.close()
    kept, moved = written[:resume_step], written[resume_step:]
    assert read_metrics(tmp_path)[: len(kept)] == kept
    assert steps(tmp_path) == [record["step"] for record in kept] + list(range(resume_step + 1, 12))
    assert read_records(tmp_path / "metrics.superseded.jsonl") == moved


def test_resume_repairs_a_line_torn_anywhere(tmp_path: Path) -> None:
    whole, last = encode_line({"step": 1, "loss": 1.0}), encode_line({"step": 2, "loss": 2.0})
    for cut in range(len(last)):
        run = tmp_path / str(cut)
        run.mkdir()
        (run / "metrics.jsonl").write_bytes(whole + last[:cut])
        sink = started(run, first_step=2)
        sink.log({"step": 3, "loss": 3.0})
        sink.close()
        survives = cut == len(last) - 1  # only its newline was missing
        assert steps(run) == ([1, 2, 3] if survives else [1, 3])
        for line in (run / "metrics.jsonl").read_bytes().splitlines():
            json.loads(line)
        torn = read_records(run / "metrics.superseded.jsonl")
        expected = [] if survives or cut == 0 else [{"torn_line": last[:cut].decode()}]
        assert torn == expected


def test_a_killed_process_loses_no_whole_line(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.monitor.sinks import JsonlSink\n"
        "sink = JsonlSink(Path(sys.argv[1]))\nsink.start({}, {})\nstep = 0\n"
        "while True:\n    step += 1\n    sink.log({'step': step, 'loss': 1.0})\n    print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = 0
    while printed < 50:
        printed = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = steps(tmp_path)
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= printed


def test_make_sinks_follows_the_config(tmp_path: Path) -> None:
    kinds = [type(sink) for sink in make_sinks(tmp_path, MonitorConfig(wandb="off"))]
    assert kinds == [JsonlSink, ConsoleSink]
    kinds = [type(sink) for sink in make_sinks(tmp_path, MonitorConfig(wandb="offline"))]
    assert kinds == [JsonlSink, ConsoleSink, WandbSink]
