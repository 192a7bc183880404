"""Ranks killed with kill -9 at random steps and started again on other world sizes train on the batches of a laptop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.derived import batch_plan
from pipeline.config.loading import load_run_config
from pipeline.data.digest import combine_row_digests
from pipeline.data.row_tables import count_rows
from pipeline.train.replay import replay_batch
from tests.corpora import random_lengths, write_corpus
from tests.servers import serving

STEPS = 400
KILLS = 20
CONFIG = """
run_directory: RUN
seed: 3
data:
  mixture: [{corpus: URL/0, weight: 3}, {corpus: URL/1, epochs: 2}, {corpus: LOCAL/2, weight: 900}]
  mixture_exponent: 0.7
  exclude: [{documents: ["train-0/3 é"], from_step: 150}]
  sequence_length: 64
  open_shards: 6
  workers: WORKERS
  cache: {directory: CACHE, gigabytes: 0.0008, stall_seconds: 1.0, retry_seconds: 60.0}
model: {hidden_size: 32, num_layers: 1, num_heads: 2, intermediate_size: 64, max_positions: 64}
train:
  steps: 400
  global_batch_size: 9
  micro_batch_size: 4
  stages: [{steps: 230, sequence_length: 32, global_batch_size: 16}, {}]
  batch_warmup: {tokens: 30000, start: 8, increment: 4}
  device: cpu
  precision: fp32
monitor: {log_every_steps: 1, wandb: "off"}
"""
FAULTS = {"error503": 0.1, "reset": 0.05, "truncate": 0.05, "wrong_byte": 0.02}


def finished_step(outputs: list[Path], num_micro_batches: int) -> int:
    """Steps that every rank has written down whole, as a checkpoint would have them."""
    found = []
    for output in outputs:
        lines = output.read_text().splitlines(keepends=True) if output.exists() else []
        steps = [int(line.split()[0]) for line in lines if line.endswith("\n")]
        whole = [step for step in set(steps) if steps.count(step) == num_micro_batches]
        found.append(max(whole, default=0))
    return min(found)


def collect(outputs: list[Path], first: int, last: int, digests: dict[int, dict[int, str]]) -> None:
    for output in outputs:
        for line in output.read_text().splitlines():
            step, *rows = line.split()
            if first < int(step) <= last:
                for row in rows:
                    number, digest = row.split(":")
                    if int(number) >= 0:
                        digests.setdefault(int(step), {})[int(number)] = digest


def run_until_killed(
    config: Path, done: int, until: int, world_size: int, outputs: list[Path]
) -> tuple[int, list[str]]:
    """Start the ranks at a step and kill them with SIGKILL at another; returns the last whole step and their words."""
    num_micro_batches = batch_plan(load_run_config(config), world_size).accumulation
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.stream_program", config, str(done), str(rank), str(world_size), output],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    while finished_step(outputs, num_micro_batches) < until and any(rank.poll() is None for rank in ranks):
        time.sleep(0.05)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    said = [rank.communicate()[1] for rank in ranks]
    return finished_step(outputs, num_micro_batches), said


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_killed_and_resumed_on_other_world_sizes_over_a_faulty_server(tmp_path: Path) -> None:
    for number, shape in enumerate(((12, 25), (6, 20), (5, 30))):
        corpus = write_corpus(tmp_path / f"corpora/{number}", random_lengths(number, *shape, 120.0), seed=number)
        for length in (32, 64):
            count_rows(corpus.directory, "best_fit", "bert", length)

    def write(name: str, url: str, workers: int) -> Path:
        changes = {"URL": url, "LOCAL": str(tmp_path / "corpora"), "WORKERS": str(workers), "RUN": str(tmp_path)}
        text = CONFIG.replace("CACHE", str(tmp_path / "cache"))
        for placeholder, value in changes.items():
            text = text.replace(placeholder, value)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    generator = np.random.default_rng(0)
    digests: dict[int, dict[int, str]] = {}
    done = kills = 0
    with serving(tmp_path / "corpora", shares=FAULTS, seed=1) as server:
        while done < STEPS:
            world_size = int(generator.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1]))
            config = write("remote.yaml", server.url, workers=int(generator.integers(0, 2)))
            outputs = [tmp_path / f"{kills}-{rank}.txt" for rank in range(world_size)]
            until = STEPS if kills == KILLS else min(STEPS, done + int(generator.integers(1, 2 * STEPS // KILLS)))
            last, said = run_until_killed(config, done, until, world_size, outputs)
            assert last > done, said
            collect(outputs, done, last, digests)
            done, kills = last, kills + (last < STEPS)
            print(f"killed {kills} times, at step {done} on {world_size} ranks")
    assert kills >= KILLS // 2
    local = load_run_config(write("local.yaml", str(tmp_path / "corpora"), workers=0))
    for step in range(1, STEPS + 1):
        numbers = np.array(sorted(digests[step]))
        rows = np.array([list(bytes.fromhex(digests[step][number])) for number in numbers.tolist()], np.uint8)
        assert combine_row_digests(numbers, rows) == replay_batch(local, step).digest, step
