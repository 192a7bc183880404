"""Real runs: strategies agree with one process, resume is exact, signals end a run cleanly."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.launch.requeue import run_events, was_stopped
from pipeline.monitor.events import read_events
from pipeline.train.run import RunOutcome, train
from tests.corpora import random_lengths, write_corpus
from tests.rankpool import RankError, RankPool
from tests.runs import column, metrics_of, run_rank, tiny_corpus, weights_of, write_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


@pytest.fixture(scope="module")
def alone(rank_pool: RankPool, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that the others are compared with."""
    config = write_config(tmp_path_factory.mktemp("alone"), corpus)
    rank_pool.run(run_rank, str(config), ["--model.hidden_dropout", "0"], world_size=1)
    return config.with_suffix("")


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_two_ranks_train_as_one_process(
    strategy: str, rank_pool: RankPool, corpus: Path, alone: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    rank_pool.run(run_rank, str(config), ["--train.strategy", strategy, "--model.hidden_dropout", "0"], world_size=2)
    run = config.with_suffix("")
    assert column(run, "step") == list(range(1, 21))
    assert column(run, "loss") == pytest.approx(column(alone, "loss"), abs=1e-5)
    assert column(run, "grad_norm") == pytest.approx(column(alone, "grad_norm"), rel=1e-4)
    assert column(run, "batch_digest") == column(alone, "batch_digest")
    assert column(run, "tokens") == column(alone, "tokens")
    assert metrics_of(run)[-1]["validation_loss"] == pytest.approx(metrics_of(alone)[-1]["validation_loss"], abs=1e-5)
    for name in ("validation_accuracy_mlm", "validation_bits_per_token"):
        assert metrics_of(run)[-1][name] == pytest.approx(metrics_of(alone)[-1][name], abs=1e-4)
    weights, expected = (weights_of(path, 20) for path in (run, alone))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert value == pytest.approx(expected[name], abs=2e-4), name


def test_micro_batches_do_not_change_the_run(rank_pool: RankPool, corpus: Path, alone: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    overrides = ["--train.strategy", "ddp", "--model.hidden_dropout", "0", "--train.micro_batch_size", "3"]
    rank_pool.run(run_rank, str(config), [*overrides, "--data.workers", "2"], world_size=2)
    run = config.with_suffix("")
    assert column(run, "loss") == pytest.approx(column(alone, "loss"), abs=1e-5)
    assert column(run, "batch_digest") == column(alone, "batch_digest")


def _killed_after(config_path: str, overrides: list[str], step: int, signal_name: str) -> RunOutcome:
    """Run; when ``metrics.jsonl`` shows ``step``, rank 0 gets the signal."""
    run_directory = Path(config_path).with_suffix("")

    def watch() -> None:
        metrics = run_directory / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.Signals[signal_name])

    if os.environ["RANK"] == "0":
        threading.Thread(target=watch, daemon=True).start()
    return run_rank(config_path, overrides)


@pytest.mark.parametrize(
    ("strategy", "world_size", "signal_name"),
    [("single", 1, "SIGTERM"), ("ddp", 2, "SIGUSR1"), ("zero1", 2, "SIGTERM"), ("zero3", 2, "SIGUSR1")],
)
def test_a_signal_stops_cleanly_and_the_resumed_run_is_bitwise_the_same(
    strategy: str, world_size: int, signal_name: str, rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    overrides = ["--train.strategy", strategy]
    undisturbed = write_config(tmp_path, corpus, "undisturbed")
    rank_pool.run(run_rank, str(undisturbed), overrides, world_size=world_size)
    config = write_config(tmp_path, corpus, "disturbed")
    outcomes = rank_pool.run(_killed_after, str(config), overrides, 7, signal_name, world_size=world_size)
    run = config.with_suffix("")
    assert {(outcome.step, outcome.finished) for outcome in outcomes} == {(outcomes[0].step, False)}
    assert 7 <= outcomes[0].step < 20
    assert (run / f"checkpoints/step-{outcomes[0].step:08d}/meta.json").exists()
    outcomes = rank_pool.run(run_rank, str(config), overrides, world_size=world_size)
    assert outcomes[0].finished
    expected = undisturbed.with_suffix("")
    for name in ("step", "loss", "grad_norm", "lr", "tokens", "batch_digest"):
        assert column(run, name) == column(expected, name), name
    weights, reference = (weights_of(path, 20) for path in (run, expected))
    assert all((weights[name] == reference[name]).all() for name in reference)


def _dies_after_checkpoint(config_path: str, overrides: list[str]) -> None:
    run_directory = Path(config_path).with_suffix("")

    def watch() -> None:
        while not (run_directory / "checkpoints/step-00000010/meta.json").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    run_rank(config_path, overrides)


def test_kill_minus_nine_loses_nothing_but_time(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    undisturbed = write_config(tmp_path, corpus, "undisturbed")
    rank_pool.run(run_rank, str(undisturbed), ["--train.strategy", "zero2"], world_size=2)
    config = write_config(tmp_path, corpus, "killed")
    overrides = ["--train.strategy", "zero2"]
    with pytest.raises(RankError):
        rank_pool.run(_dies_after_checkpoint, str(config), overrides, world_size=2)
    rank_pool.run(run_rank, str(config), overrides, world_size=2)
    run, expected = config.with_suffix(""), undisturbed.with_suffix("")
    assert column(run, "step") == list(range(1, 21))
    assert column(run, "loss") == column(expected, "loss")


def test_ddp_resumes_on_another_number_of_ranks(rank_pool: RankPool, corpus: Path, alone: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    overrides = ["--train.strategy", "ddp", "--model.hidden_dropout", "0"]
    rank_pool.run(_killed_after, str(config), overrides, 7, "SIGTERM", world_size=2)
    rank_pool.run(run_rank, str(config), ["--model.hidden_dropout", "0"], world_size=1)
    run = config.with_suffix("")
    assert column(run, "loss") == pytest.approx(column(alone, "loss"), abs=1e-5)
    assert column(run, "batch_digest") == column(alone, "batch_digest")


def _run_in_a_directory_of_its_own(config_path: str, overrides: list[str]) -> RunOutcome:
    own = Path(config_path).with_suffix("") if os.environ["RANK"] == "0" else Path(config_path).with_name("other")
    return run_rank(config_path, [*overrides, "--run_directory", str(own)])


def _in_a_job_that_ends(seconds: float, config_path: str, overrides: list[str]) -> RunOutcome:
    """Run in a job that has so much time left, as rank 0 alone knows."""
    if os.environ["RANK"] == "0":
        os.environ["SLURM_JOB_END_TIME"] = str(time.time() + seconds)
    return run_rank(config_path, overrides)


def test_a_run_stops_by_itself_before_its_time_ends(
    rank_pool: RankPool, corpus: Path, alone: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    overrides = ["--train.strategy", "ddp", "--model.hidden_dropout", "0"]
    outcomes = rank_pool.run(_in_a_job_that_ends, 60.0, str(config), overrides, world_size=2)
    assert outcomes == [RunOutcome(config.with_suffix(""), 1, finished=False)] * 2
    assert rank_pool.run(_in_a_job_that_ends, 86400.0, str(config), overrides, world_size=2)[0].finished
    events = read_events(config.with_suffix(""))
    stopped = [event for event in events if event["event"] == "stopped"]
    assert [(event["step"], event["signal"], event["at_time_limit"]) for event in stopped] == [(1, None, True)]
    assert column(config.with_suffix(""), "step") == column(alone, "step")
    assert column(config.with_suffix(""), "loss") == pytest.approx(column(alone, "loss"), abs=1e-5)


def _signalled_at_its_start(config_path: str) -> int:
    """`pretrain train` that gets SIGUSR1 before anything of the run is made."""
    from pipeline.train import run

    def signalled_train(*arguments: Any) -> RunOutcome:
        os.kill(os.getpid(), signal.SIGUSR1)
        return train(*arguments)

    original, run.train = run.train, signalled_train
    try:
        return main(["train", config_path])
    finally:
        run.train = original


def test_a_signal_at_the_start_stops_the_run_after_its_first_step(
    rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    assert rank_pool.run(_signalled_at_its_start, str(config), world_size=1) == [0]
    events = read_events(config.with_suffix(""))
    story = [("started", 0), ("training", 0), ("checkpoint", 1), ("stopped", 1)]
    assert [(event["event"], event["step"]) for event in events] == story


def test_nodes_that_do_not_share_the_run_directory(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    rank_pool.run(run_rank, str(config), ["--train.strategy", "ddp", "--train.steps", "5"], world_size=1)
    with pytest.raises(RankError, match=r"the ranks see different checkpoints \(newest steps \[0, 5\], 0 for none\)"):
        rank_pool.run(_run_in_a_directory_of_its_own, str(config), ["--train.strategy", "ddp"], world_size=2)


def test_events_reach_the_console(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_rank(str(write_config(tmp_path, corpus)), ["--train.steps", "5"])
    assert "checkpoint at step 5: path=step-00000005, stall_seconds=" in capsys.readouterr().err


def test_a_stopped_run_can_be_called_finished(rank_pool: RankPool, corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    (outcome,) = rank_pool.run(_killed_after, str(config), [], 7, "SIGTERM", world_size=1)
    run = config.with_suffix("")
    assert was_stopped(run_events(run))
    for _ in range(2):
        rank_pool.run(run_rank, str(config), ["--train.steps", str(outcome.step)], world_size=1)
        assert not was_stopped(run_events(run))
    assert [event["event"] for event in read_events(run)].count("finished") == 1


def test_ranks_that_do_not_divide_the_batch_train_as_one_process(
    rank_pool: RankPool, corpus: Path, alone: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    overrides = ["--train.strategy", "zero1", "--model.hidden_dropout", "0"]
    rank_pool.run(run_rank, str(config), overrides, world_size=3)
    run = config.with_suffix("")
    assert column(run, "loss") == pytest.approx(column(alone, "loss"), abs=1e-5)
    assert column(run, "grad_norm") == pytest.approx(column(alone, "grad_norm"), rel=1e-4)
    for name in ("batch_digest", "tokens"):
        assert column(run, name) == column(alone, name)
    assert metrics_of(run)[-1]["validation_loss"] == pytest.approx(metrics_of(alone)[-1]["validation_loss"], abs=1e-5)


STAGED = """
data:
  mixture: [{corpus: CORPUS, weight: 3}, {corpus: OTHER, weight: 1, epochs: 2}]
  exclude: [{documents: ["train-0/3 é", "train-2/7 é"], from_step: 12}]
train:
  stages:
    - {steps: 9, sequence_length: 32, global_batch_size: 12}
    - {global_batch_size: 8}
  batch_warmup: {tokens: 500, start: 4, increment: 4}
"""


def test_a_staged_mixture_resumed_on_other_ranks_is_the_same_run(
    rank_pool: RankPool, corpus: Path, tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other", random_lengths(5, 2, 9), vocab_size=200, seed=5).directory

    def staged(name: str) -> Path:
        base = write_config(tmp_path, corpus, f"{name}_base")
        base.write_text(base.read_text().replace(f"corpus: {corpus}, ", "").replace(f"{name}_base", name))
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"base: {base.name}\n" + STAGED.replace("CORPUS", str(corpus)).replace("OTHER", str(other)))
        return config

    undisturbed, disturbed = staged("undisturbed"), staged("disturbed")
    overrides = ["--train.strategy", "ddp", "--model.hidden_dropout", "0"]
    rank_pool.run(run_rank, str(undisturbed), overrides, world_size=1)
    rank_pool.run(_killed_after, str(disturbed), overrides, 5, "SIGTERM", world_size=3)
    outcomes = rank_pool.run(run_rank, str(disturbed), overrides, world_size=2)
    assert outcomes[0].finished
    run, expected = disturbed.with_suffix(""), undisturbed.with_suffix("")
    assert column(run, "step") == list(range(1, 21))
    for name in ("batch_digest", "tokens", "lr"):
        assert column(run, name) == column(expected, name)
    assert column(run, "loss") == pytest.approx(column(expected, "loss"), abs=1e-5)
