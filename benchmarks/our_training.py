"""Our side of the training benchmarks: the step by itself, and the whole loop of `pretrain train`.

The step is the module of a run (model, loss, optimizer, compilation as the config says) in a bare loop over the real
loader: what the hardware does without Lightning, logs and checkpoints.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import StepClock
from benchmarks.workload import Workload
from pipeline.base.ranks import RankFacts
from pipeline.config.run import RunConfig
from pipeline.monitor.events import read_events
from pipeline.monitor.sinks import read_metrics
from pipeline.objectives.batch import Batch
from pipeline.train.run import train
from pipeline.train.setup import Start, make_model, make_module, prepare_process
from pipeline.train.streams import Streams, open_streams

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def initial_model(config: RunConfig, streams: Streams) -> Any:
    """The model that a run of this config starts with."""
    return make_model(config, streams)


class OurStep:
    """A model that is trained step by step, as the config says."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        plan, self.device = prepare_process(config, RankFacts())
        self.streams = open_streams(config)
        self.module = make_module(config, self.streams, Start(), plan, self.device).to(self.device)
        self.optimizer = self.module.configure_optimizers()
        self.batches: Iterator[Batch] = iter(self.streams.train_loader(0, plan, RankFacts(), self.device))

    def train_step(self) -> Tensor:
        """One optimizer step on the next batch; the mean loss over its predictions, a scalar on the device."""
        batch = next(self.batches)
        predictions = max(int(batch.window_predictions), 1)
        self.module.optimizer_zero_grad(0, 0, self.optimizer)
        loss = self.loss_sum(batch.to(self.device)) / predictions
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.model.parameters(), self.config.train.gradient_clip_norm)
        self.optimizer.step()
        return loss.detach()

    def loss_sum(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropies of a batch on the device, in the precision of the config."""
        with self.autocast():
            (loss_sum,) = self.module.loss_sums(batch)
            return loss_sum

    def autocast(self) -> torch.autocast:
        """The precision of the config."""
        dtype = AUTOCAST_DTYPES.get(self.config.train.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def seconds_a_step(self, num_steps: int, warmup_steps: int = 1) -> float:
        """Mean over the next ``num_steps``, after some that are not counted."""
        clock = StepClock(self.device.type)
        for _ in range(warmup_steps + num_steps):
            self.train_step()
            clock.tick()
        return clock.seconds_a_step(warmup_steps)

    def close(self) -> None:
        """End the loader's thread."""
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()


def losses_of_first_steps(config: RunConfig, num_steps: int) -> list[float]:
    """Loss of each of the first steps, before its update."""
    step = OurStep(config)
    try:
        return [float(step.train_step()) for _ in range(num_steps)]
    finally:
        step.close()


def trained_metrics(config: RunConfig, num_steps: int) -> list[dict[str, Any]]:
    """The logged lines of :func:`trained_run`."""
    return trained_run(config, num_steps)[0]


def trained_run(config: RunConfig, num_steps: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train as `pretrain train` does, in this process and a new directory; the logged lines and the events.

    Lines come after the first step, and after every ``monitor.log_every_steps``.

    Raises:
        SystemExit: a signal has stopped the training; so it does the benchmark.
    """
    with tempfile.TemporaryDirectory(prefix="pretrain-benchmark-") as directory:
        run_directory = Path(directory) / "run"
        outcome = train(
            replace(config, run_directory=str(run_directory), train=replace(config.train, steps=num_steps)), RankFacts()
        )
        if not outcome.finished:
            raise SystemExit(128 + signal.SIGTERM)
        return read_metrics(run_directory), read_events(run_directory)


def seconds_a_step_of_training(config: RunConfig, num_steps: int, seed: int = 0) -> float:
    """Seconds a step of `pretrain train` after its first step, which warms up (and compiles); logs as by default."""
    lines = trained_metrics(replace(config, seed=seed), num_steps + 1)
    return (
        sum(line["seconds_per_step"] * (line["step"] - before["step"]) for before, line in pairwise(lines)) / num_steps
    )


def stock_model(workload: Workload, attention: str, our_weights: bool = True) -> Any:
    """The stock class with an attention function of transformers' own, on the CPU with our initial weights.

    Args:
        our_weights: else new ones, drawn on the device of the workload.
    """
    import transformers

    from pipeline.models.build import hf_config, stock_state_dict
    from pipeline.models.families import FAMILIES

    config = workload.config()
    manifest = workload.streams.manifest
    hf = hf_config(config.model, vocab_size=manifest.vocab_size, special_ids=manifest.special_ids)
    hf._attn_implementation = attention
    with torch.device("cpu" if our_weights else workload.hardware.device):
        model = getattr(transformers, FAMILIES[config.model.family].model_class)(hf)
    if our_weights:
        weights = stock_state_dict(initial_model(config, workload.streams))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        tied = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
        if unexpected or set(missing) - tied:
            raise AssertionError(f"weights do not fit the stock class: missing {missing}, unexpected {unexpected}")
        model.tie_weights()
    return model.train()
