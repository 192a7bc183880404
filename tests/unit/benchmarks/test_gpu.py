"""`benchmarks/gpu.py` in small on a CPU: every kind of entry runs, and what checks the numbers can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import correctness, gpu, training_run
from benchmarks.batch_size import fastest_rows
from benchmarks.peers import hf_trainer
from benchmarks.workload import Hardware, Shape, Workload, synthetic_corpus
from pipeline.models.flops import num_parameters

REDUCED = ["--device", "cpu", "--reduced", "--run-minutes", "0.01"]


@pytest.fixture(scope="module", autouse=True)
def _quick_and_apart():
    """One thread, and no compiler: what a graph computes is tested beside the code that compiles it."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        patch.setattr("sys.argv", ["benchmarks/gpu.py"])
        yield
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    """Two calls, joined in one file."""
    directory = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "WORK", directory)
        path = directory / "gpu.json"
        sizes = ["bert_base_512", "gpt2_124m"]
        gpu.main([*REDUCED, "--only", *sizes, "--json", str(path)])
        gpu.main([*REDUCED, "--only", *gpu.OTHERS, "--json", str(path)])
        return json.loads(path.read_text())


def test_every_kind_of_entry_is_measured(record: dict) -> None:
    assert set(record["tables"]) == {"correctness", "bert_base_512", "gpt2_124m", *gpu.OTHERS, "training_run_time"}
    names = [result["name"] for result in record["results"]]
    assert names == ["bert_base_512", "gpt2_124m", "data_wait_share", "checkpoint_stall_share"]
    contenders = {row[0] for row in record["tables"]["bert_base_512"]["rows"]}
    assert {"ours", "ours, step by itself"} <= contenders
    assert "plain loop" in {row[0] for row in record["tables"]["gpt2_124m"]["rows"]}
    trainers = {name for name in contenders if name.startswith("HF")}
    skipped = record["facts"]["skipped"]
    if hf_trainer.missing_library() is None:
        assert len(trainers) == 3
        assert skipped == {}
    else:
        assert not trainers
        assert all("accelerate" in why for why in skipped.values())
        assert len(skipped) == 5
    assert [row[0] for row in record["tables"]["engines"]["rows"]] == ["no engine", "ZeRO-0", "ZeRO-1", "ZeRO-2"]


def test_a_reduced_run_says_that_it_is_one(record: dict) -> None:
    assert record["facts"]["reduced"].startswith("tiny models")
    assert {row[2] for row in record["tables"]["bert_base_512"]["rows"]} == {"-"}, "an MFU without a known peak"


def test_no_gpu_is_said_in_one_line(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no CUDA device here; `--device cpu --reduced` runs everything"):
        gpu.main(["--only", "engines"])


def test_what_would_begin_too_late_is_left_out_and_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "WORK", tmp_path)
    monkeypatch.setattr(gpu, "_check", lambda session: None)
    path = tmp_path / "gpu.json"
    gpu.main([*REDUCED, "--minutes", "0", "--only", "gpt2_124m", "--json", str(path)])
    record = json.loads(path.read_text())
    assert record["results"] == []
    assert record["facts"]["skipped"]["gpt2_124m, ours"] == "no time was left"


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("bert_base_512", 109.5),
        ("bert_large_512", 335.2),
        ("gpt2_124m", 124.4),
        ("gpt2_355m", 354.8),
        ("gpt2_774m", 774.0),
        ("gpt2_1558m", 1557.6),
    ],
)
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    shape, _ = gpu.SIZES[name]
    assert num_parameters(shape.model_config(), shape.vocab_size) / 1e6 == pytest.approx(millions, abs=0.15)


def test_wrong_numbers_are_found(tmp_path: Path, monkeypatch) -> None:
    shape = Shape("bert", hidden_size=32, num_layers=2, num_heads=2, vocab_size=512, sequence_length=64)
    work = Workload(shape, synthetic_corpus(tmp_path, 512, 20_000, 40), 2, Hardware())
    rows = correctness.check_numbers(work)
    assert [row[1] for row in rows] == ["fp32", "bf16"]
    assert 0 < float(rows[1][5]) < correctness.GRADIENT_TOLERANCE["bf16"]
    monkeypatch.setattr(correctness, "GRADIENT_TOLERANCE", {"fp32": 1e-3, "bf16": 1e-5})
    with pytest.raises(AssertionError, match="bert, packed, bf16: the gradient is off by"):
        correctness.check_numbers(work)


def test_the_search_ends_where_memory_or_the_gain_ends() -> None:
    def measure(speeds: dict[int, float]):
        def of(rows: int) -> float:
            if rows not in speeds:
                raise torch.OutOfMemoryError
            return speeds.pop(rows)

        return of

    assert fastest_rows(measure({8: 1.0, 16: 1.5, 32: 1.8}), [8, 16, 32, 64]) == 32
    left = {8: 1.0, 16: 1.5, 32: 1.51, 64: 9.0}
    assert fastest_rows(measure(left), [8, 16, 32, 64]) == 16
    assert left == {64: 9.0}
    with pytest.raises(torch.OutOfMemoryError):
        fastest_rows(measure({}), [8, 16])


def test_shares_of_a_run_leave_out_its_first_step_and_count_its_last_save() -> None:
    lines = [{"step": step} | {f"time_{phase}": 0.0 for phase in training_run.PHASES} for step in (1, 3, 4)]
    lines[0]["time_data_wait"] = 100.0
    lines[1] |= {"time_forward": 3.0, "time_data_wait": 1.0}
    lines[2] |= {"time_checkpoint": 2.0}
    shares = training_run.phase_shares(lines, last_save_seconds=10.0)
    assert (shares["forward"], shares["data_wait"], shares["checkpoint"]) == (0.3, 0.1, 0.6)
