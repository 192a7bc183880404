"""`pretrain bench`: what it counts, what it says, what it leaves behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.models.flops import flops_per_step
from pipeline.monitor.step_clock import PHASES
from pipeline.train import module
from pipeline.train.bench import bench
from pipeline.train.bench_report import bench_lines, bench_record
from pipeline.train.replay import replay_batch
from tests.runs import load, tiny_corpus, write_config

FEW = {"num_steps": 3, "warmup_steps": 1}


@pytest.fixture
def config_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of a corpus that is not there; temporary folders are made in ``scratch``."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return write_config(tmp_path, tmp_path / "corpus")


def test_counts_are_those_of_the_measured_steps(config_path: Path, tmp_path: Path) -> None:
    tiny_corpus(tmp_path / "corpus")
    config = load(config_path, "--train.steps", "4", "--monitor.peak_flops_per_device", "1e12")
    result = bench(config, **FEW)
    steps = [replay_batch(config, step, 1) for step in (2, 3, 4)]
    assert not result.synthetic
    assert result.measured.real_tokens == sum(step.facts()["real_tokens"] for step in steps)
    assert result.measured.predictions == sum(step.facts()["predictions"] for step in steps)
    squares = sum(int((step.rows.segment_length.astype(int) ** 2).sum()) for step in steps)
    reached = sum(
        int(length) * int((step.labels[row, start : start + length] != -100).sum())
        for step in steps
        for row, start, length in zip(
            step.rows.segment_row, step.rows.segment_start, step.rows.segment_length, strict=True
        )
    )
    counts = (result.measured.real_tokens, squares, result.measured.predictions, reached)
    flops = flops_per_step(config.model, 200, *counts)
    assert result.measured.flops == flops
    assert result.mfu == pytest.approx(flops / result.measured.seconds / 1e12)
    assert len(result.measured.step_seconds) == 3
    assert sum(result.measured.phase_seconds.values()) == pytest.approx(result.measured.seconds, rel=0.05)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "run.yaml", "scratch"}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("--objective.masking", "whole_word", "--data.packing", "pairs"),
        ("--model.family", "gpt2", "--objective.name", "clm", "--train.precision", "bf16"),
    ],
)
def test_without_a_corpus_documents_are_made_up(
    overrides: tuple[str, ...], config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bench.json"
    command = ["bench", str(config_path), "--steps", "2", "--warmup", "0", "--output", str(output), "--json"]
    assert main([*command, *overrides]) == 0
    record = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == record
    assert set(record) == {"benchmark", "machine", "versions", "command", "facts", "results", "tables"}
    assert record["facts"]["data"] == "synthetic documents"
    assert record["facts"]["filled slots, share"] > 0.9
    assert record["facts"]["mfu"].endswith("is not known; set monitor.peak_flops_per_device")
    values = {result["name"]: result["ours"] for result in record["results"]}
    assert "model FLOPs utilization" not in values
    assert min(values.values()) > 0
    assert values["step, fastest"] <= values["step, median"] <= values["step, slowest"]
    assert sum(share for _, _, share in record["tables"]["time"]["rows"]) == pytest.approx(100, abs=0.1)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "run").exists()


def test_lines_say_what_the_record_says(config_path: Path) -> None:
    result = bench(load(config_path, "--monitor.peak_flops_per_device", "1e12"), data="synthetic", **FEW)
    record = bench_record(result, "pretrain bench x.yaml")
    text = "\n".join(bench_lines(record))
    for words in (record["machine"], "torch ", "real tokens per second", "model FLOPs utilization", " %\n", " ms "):
        assert words in text
    phases = {row[0] for row in record["tables"]["time"]["rows"]}
    assert {"data wait", "forward", "backward", "optimizer", "other"} <= phases
    assert phases <= {phase.replace("_", " ") for phase in PHASES}


def test_the_last_stage_is_measured_unless_a_step_is_named(config_path: Path) -> None:
    stages = ("--train.stages", "[{steps: 6, sequence_length: 32}, {sequence_length: 64}]")
    config = load(config_path, *stages)
    assert bench(config, data="synthetic", **FEW).stage.sequence_length == 64
    assert bench(config, data="synthetic", step=2, **FEW).stage.sequence_length == 32
    short = load(config_path, *stages, "--train.steps", "5")  # does not reach it
    assert bench(short, data="synthetic", **FEW).stage.sequence_length == 32
    with pytest.raises(UserError, match=r"steps 4 to 7 are not of one stage \(8 rows of 32 tokens\).*Give fewer"):
        bench(config, data="synthetic", step=4, **FEW)


def test_numbers_out_of_range_are_refused(config_path: Path) -> None:
    config = load(config_path)
    for arguments, message in (
        ({"num_steps": 1}, "bench: --steps is 1; give at least 2"),
        ({"warmup_steps": -1}, "bench: --warmup is -1; give at least 0"),
        ({"step": 0}, "bench: --step is 0; give at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            bench(config, **arguments)  # type: ignore[arg-type]  # of several types


def test_a_place_for_the_record_is_looked_for_first(
    config_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (tmp_path, tmp_path / "nowhere" / "bench.json"):
        assert main(["bench", str(config_path), "--output", str(output)]) == 2
        assert f"bench: --output is {output}; give a file in a directory that is there." in capsys.readouterr().err


def test_a_corpus_that_is_asked_for_must_be_there(config_path: Path) -> None:
    with pytest.raises(UserError, match="No corpus at"):
        bench(load(config_path), data="corpus", **FEW)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_names_the_setting(
    error: Exception, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module.PretrainModule, "loss_sums", fail)
    wanted = r"out of memory on cpu with 2 rows of 64 tokens.*lower `train.micro_batch_size` \(now 2;.*stays\), or set "
    wanted += r"`train.activation_checkpointing: full`, or shard more with `train.strategy`\."
    with pytest.raises(UserError, match=wanted):
        bench(load(config_path), **FEW)


def test_other_errors_are_not_taken_for_it(config_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(module.PretrainModule, "loss_sums", fail)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        bench(load(config_path), **FEW)
