"""What a training loop costs beside the arithmetic, in microseconds a step: a trivial model, the same in every loop.

Every loop takes one prepared batch again and again, computes the same loss, clips, and steps the same optimizer; the
weights that come out are compared. Times are of the processor, on one thread of one core: nothing in these loops waits.
Overheads are medians over rounds of the difference to the plain loop of the same round, since the core's own speed
changes by a tenth from minute to minute. Loops: plain PyTorch; Lightning alone; Lightning with a log call every step;
Hugging Face's Trainer; ours, with the callbacks of `pretrain train` and default logging into a file and onto a console.

Letters: E width of the model.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import CoreShare, interleaved, medians, use_one_core, versions
from benchmarks.record import Goal, Result, write_record
from pipeline.monitor.step_clock import Phase, StepClock
from pipeline.train.faults import ended_by_sigterm

WIDTH: Final = 8
LEARNING_RATE: Final = 1e-3
CLIP_NORM: Final = 1.0
PREDICTIONS: Final = 4
LOG_EVERY_STEPS: Final = 10
SHORT_STEP_SECONDS: Final = 0.010
"""The clock's cost is given as a share of so short a step."""
REPEATED: Final = "ours, each reading of its clock 20 times"
CLOCK_REPEATS: Final = 20
"""A clock that does everything so often shows what it costs above the noise."""


class Trivial(nn.Module):
    """One product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        """Scalar loss of ``inputs`` (E, E)."""
        return (inputs @ self.weight).square().sum()


def inputs() -> Tensor:
    """What every step takes, (E, E)."""
    return torch.linspace(-1, 1, WIDTH * WIDTH).reshape(WIDTH, WIDTH)


class Repeated:
    """One batch, again and again; notes when the steps to be measured begin and end."""

    def __init__(self, batch: Any, warmup_steps: int, num_steps: int) -> None:
        self.batch, self.warmup_steps, self.num_steps = batch, warmup_steps, num_steps
        self.begun = self.ended = 0.0

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.warmup_steps + self.num_steps + 2):
            if number == self.warmup_steps:
                self.begun = time.process_time()
            elif number == self.warmup_steps + self.num_steps:
                self.ended = time.process_time()
            yield self.batch

    def __len__(self) -> int:
        return self.warmup_steps + self.num_steps + 2

    @property
    def microseconds(self) -> float:
        """Mean of a step."""
        return 1e6 * (self.ended - self.begun) / self.num_steps


Contender = Callable[[Trivial, Repeated], None]


def plain_loop(model: Trivial, batches: Repeated) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch) / PREDICTIONS
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()


def lightning_loop(model: Trivial, batches: Repeated, log: bool = False) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.model(batch) / PREDICTIONS
            if log:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=CLIP_NORM,
            logger=pl.loggers.CSVLogger(directory) if log else False,
            log_every_n_steps=LOG_EVERY_STEPS,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), train_dataloaders=_WithoutLength(batches))


class _WithoutLength:
    """As our loader, which has no length either."""

    def __init__(self, batches: Repeated) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def trainer_loop(model: Trivial, batches: Repeated) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"loss": self.model(inputs) / PREDICTIONS}

    class Loop(Trainer):
        def get_train_dataloader(self) -> Any:
            return batches

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            max_steps=len(batches),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=CLIP_NORM,
            optim="adamw_torch_fused",
            logging_steps=LOG_EVERY_STEPS,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        batches.batch = {"inputs": batches.batch}
        loop = Loop(model=Wrapped(), args=arguments)
        loop.remove_callback(PrinterCallback)
        loop.train()


class RepeatedClock(StepClock):
    """Enters every phase :data:`CLOCK_REPEATS` times."""

    def enter(self, phase: Phase) -> None:
        for _ in range(CLOCK_REPEATS):
            super().enter(phase)


def our_loop(model: Trivial, batches: Repeated, clock: type[StepClock] = StepClock) -> None:
    """Module, trainer, callbacks and sinks as :func:`pipeline.train.run.train` puts them together."""
    from pipeline.base.ranks import RankFacts
    from pipeline.config.derived import batch_plan
    from pipeline.monitor.callback import MonitorCallback, ProgressCallback
    from pipeline.monitor.console import ConsoleSink
    from pipeline.monitor.progress import ProgressFile
    from pipeline.monitor.sinks import JsonlSink
    from pipeline.objectives.loss import PackedLoss
    from pipeline.objectives.terms import Term
    from pipeline.train.bad_steps import BadSteps
    from pipeline.train.detector import Detector
    from pipeline.train.faults import StopSignals, fit
    from pipeline.train.module import PretrainModule
    from pipeline.train.process import quiet_lightning
    from pipeline.train.saving import Lifecycle
    from pipeline.train.setup import make_trainer
    from pipeline.train.start_up import StartUpClock
    from pipeline.train.step_timing import TimedBatches
    from pipeline.train.validation import Validation

    config = our_config(len(batches))
    facts, device = RankFacts(), torch.device("cpu")
    plan = batch_plan(config, 1)
    quiet_lightning()
    loss = PackedLoss((Term("mlm", "predictions"),), lambda model, input_ids, *_: model(input_ids), ("input_ids",))
    module = PretrainModule(model, loss, config, plan, 0)
    module.clock = clock()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        sinks = [JsonlSink(run), ConsoleSink(io.StringIO())]
        for sink in sinks:
            sink.start({"first_step": 0, "total_steps": config.train.steps}, {})
        monitor = MonitorCallback(
            config.monitor,
            sinks,
            total_steps=config.train.steps,
            peak_flops_per_device=None,
            flops=lambda *counts: float(sum(counts)),
            clock=module.clock,
            tokens_before=0,
        )
        never: Any = None  # nothing is saved before the last step, and that is not reached
        bad_steps = BadSteps(config, Detector(config.train.bad_steps, config.train.skip_steps), monitor)
        signals, start_up = StopSignals(), StartUpClock(time.time())
        lifecycle = Lifecycle(
            config.checkpoint, run, resume_from=None, make_meta=never, monitor=monitor, signals=signals,
            start_up=start_up,
        )  # fmt: skip
        validation = Validation(lambda step: [], config.evaluation, monitor)
        features = [ProgressCallback(ProgressFile(run, 0)), bad_steps, validation, monitor, lifecycle]
        trainer = make_trainer(config, plan, facts, device, WIDTH * WIDTH, features)
        batches.batch = our_batch(batches.batch)
        fit(trainer, module, TimedBatches(batches, module.clock))
        for sink in sinks:
            sink.close()


def our_config(num_batches: int) -> Any:
    """Defaults but for what every loop shares; no checkpoint comes before the last step."""
    from pipeline.config.run import RunConfig

    config = RunConfig()
    return replace(
        config,
        optimizer=replace(config.optimizer, learning_rate=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.999)),
        schedule=replace(config.schedule, final_ratio=1.0),
        train=replace(
            config.train,
            steps=num_batches + 1,
            global_batch_size=1,
            micro_batch_size=1,
            strategy="single",
            device="cpu",
            precision="fp32",
            gradient_clip_norm=CLIP_NORM,
        ),
        checkpoint=replace(config.checkpoint, every_steps=num_batches + 1),
        monitor=replace(config.monitor, log_every_steps=LOG_EVERY_STEPS, wandb="off"),
    )


def our_batch(tensor: Tensor) -> Any:
    """A batch whose input ids are ``tensor``; the digest of its row stands in every batch, not only in logged ones."""
    from pipeline.objectives.batch import Batch

    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(
        input_ids=tensor,
        position_ids=empty,
        cu_seqlens=empty,
        prediction_positions=empty,
        labels=empty,
        window_predictions=PREDICTIONS,
        num_predictions=PREDICTIONS,
        num_real_tokens=WIDTH,
        sum_squared_lengths=WIDTH * WIDTH,
        sum_prediction_lengths=PREDICTIONS * WIDTH,
        row_numbers=torch.zeros(1, dtype=torch.int64),
        first_slot_key=0,
        max_seqlen=WIDTH,
        step=1,
        row_digests=torch.zeros(1, 32, dtype=torch.uint8),
    )


LOOPS: Final[dict[str, Contender]] = {
    "PyTorch": plain_loop,
    "Lightning": lightning_loop,
    "Lightning, a log call every step": lambda model, batches: lightning_loop(model, batches, log=True),
    "Hugging Face Trainer": trainer_loop,
    "ours": our_loop,
    REPEATED: lambda model, batches: our_loop(model, batches, RepeatedClock),
}


def measure(names: list[str], warmup_steps: int, num_steps: int, repetitions: int) -> dict[str, list[float]]:
    """Microseconds a step of every loop, round by round.

    Raises:
        AssertionError: two loops have trained to different weights.
    """
    weights: dict[str, Tensor] = {}

    def once(name: str) -> float:
        model, batches = Trivial(), Repeated(inputs(), warmup_steps, num_steps)
        LOOPS[name](model, batches)
        weights[name] = model.weight.detach().clone()
        return batches.microseconds

    measured = interleaved({name: lambda name=name: once(name) for name in names}, repetitions, "us a step,")
    for name in names:
        torch.testing.assert_close(
            weights[name], weights[names[0]], rtol=1e-5, atol=1e-6, msg=f"{name} trains otherwise"
        )
    return measured


def results_of(spent: dict[str, list[float]]) -> list[Result]:
    """Overheads over the plain loop, and what the clock costs."""

    def above(name: str, other: str) -> float:
        return statistics.median(a - b for a, b in zip(spent[name], spent[other], strict=True))

    peers = {name: above(name, "PyTorch") for name in spent if name not in ("PyTorch", "ours", REPEATED)}
    clock_seconds = 1e-6 * max(above(REPEATED, "ours"), 0.0) / (CLOCK_REPEATS - 1)
    return [
        Result(
            "loop_overhead",
            "us a step over plain PyTorch",
            "lower",
            above("ours", "PyTorch"),
            peers,
            Goal(ours=300.0),
        ),
        Result(
            "meters", "% of a step of 10 ms", "lower", 100 * clock_seconds / SHORT_STEP_SECONDS, goal=Goal(ours=0.5)
        ),
    ]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="a smoke test; its numbers say nothing")
    options = parser.parse_args()
    use_one_core()
    torch.set_num_threads(1)
    share = CoreShare()
    names = [name for name in LOOPS if name != "Hugging Face Trainer" or _has_accelerate()]
    spent = measure(names, *((5, 20, 1) if options.quick else (200, 1000, 15)))
    facts = {
        "us a step": {name: f"{value:.0f}" for name, value in medians(spent).items()},
        "logging": f"every {LOG_EVERY_STEPS} steps where a loop logs",
        "share of the core": f"{share():.2f}",
    }
    write_record(
        options.json, "loop_overhead", versions("torch", "lightning", "transformers"), results_of(spent), facts=facts
    )


def _has_accelerate() -> bool:
    import importlib.util

    return importlib.util.find_spec("accelerate") is not None


if __name__ == "__main__":
    with ended_by_sigterm():
        main()
