"""Between logged steps nothing waits for the device: torch raises an error at whatever would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.loop_overhead import inputs, our_batch
from pipeline.monitor.step_clock import PHASES
from pipeline.train.bad_steps import BadSteps
from pipeline.train.module import PretrainModule
from pipeline.train.run import train
from tests.runs import load, metrics_of, tiny_corpus, write_config

pytestmark = pytest.mark.gpu
NUM_STEPS = 13
OVERRIDES = (
    *("--train.steps", str(NUM_STEPS), "--monitor.log_every_steps", "6", "--train.device", "cuda"),
    *("--train.precision", "bf16", "--checkpoint.every_steps", "100", "--evaluation.every_steps", "0"),
)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_nothing_waits_for_the_device_between_logged_steps(
    accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = []
    begin_step, on_step_end = PretrainModule._begin_step, BadSteps.on_step_end  # the first of the callbacks

    def begin(self: PretrainModule, batch: Any) -> None:
        if self.step >= 2:  # the first steps make kernels and states
            watched.append(self.step + 1)
            torch.cuda.set_sync_debug_mode("error")
        begin_step(self, batch)

    def step_end(self: BadSteps, trainer: Any, module: Any, step: int) -> None:
        if self.monitor.is_due(step):
            torch.cuda.set_sync_debug_mode("default")
        on_step_end(self, trainer, module, step)

    monkeypatch.setattr(PretrainModule, "_begin_step", begin)
    monkeypatch.setattr(BadSteps, "on_step_end", step_end)
    corpus = tiny_corpus(tmp_path / "corpus")
    size = ("--train.micro_batch_size", str(8 // accumulation))
    try:
        train(load(write_config(tmp_path, corpus.directory), *OVERRIDES, *size))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watched == list(range(3, NUM_STEPS + 1))
    lines = metrics_of(tmp_path / "run")
    for line in lines[1:]:
        parts = sum(line[f"time_{phase}"] for phase in PHASES if phase not in ("validation", "checkpoint"))
        assert parts == pytest.approx(line["seconds_per_step"])
        assert min(line["time_forward"], line["time_backward"], line["time_optimizer"]) > 0


def test_a_batch_of_a_worker_process_is_copied_without_waiting() -> None:
    batch = our_batch(inputs().repeat(1024, 1))  # more than the 64 kB that CUDA keeps aside
    batch.to("cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # clock ticks: about a second
    working = torch.cuda.Event()
    working.record()
    batch.to("cuda")
    assert not working.query()
    torch.cuda.synchronize()
