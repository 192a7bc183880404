"""The gate before the optimizer: where it decides, what it leaves as it was, what it says when nothing helps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.checkpoints.file_writer import FileWriter
from pipeline.config.bad_steps import BadStepsConfig
from pipeline.config.optimization import OptimizerConfig
from pipeline.monitor.events import read_events
from pipeline.optim.build import make_optimizer
from pipeline.train import bad_steps
from pipeline.train.bad_steps import decides_on_device
from pipeline.train.detector import Detector
from pipeline.train.module import PretrainModule
from pipeline.train.run import train
from pipeline.train.saves import Saves
from tests.runs import load, tiny_corpus, weights_of, write_config

OVERRIDES = ("--train.steps", "8", "--evaluation.every_steps", "0", "--evaluation.rows", "1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_corpus(tmp_path_factory.mktemp("corpus") / "corpus").directory


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Steps whose loss is multiplied, and by what."""
    factors: dict[int, float] = {}
    clean = PretrainModule.loss_sums

    def loss_sums(self: PretrainModule, batch: Any) -> tuple[torch.Tensor, ...]:
        (loss,) = clean(self, batch)
        return (loss * factors[self.step + 1] if self.training and self.step + 1 in factors else loss,)

    monkeypatch.setattr(PretrainModule, "loss_sums", loss_sums)
    return factors


def test_the_device_decides_as_the_host(
    corpus: Path, tmp_path: Path, poison: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the optimizer's kernel, read every third step; two bad steps, and one that was named."""
    poison |= {3: math.nan, 4: -math.inf}
    runs = {}
    for name, on_device in (("host", False), ("device", True)):
        monkeypatch.setattr(bad_steps, "decides_on_device", lambda *_, here=on_device: here)
        config = write_config(tmp_path, corpus, name)
        train(load(config, *OVERRIDES, "--train.skip_steps", "[6]", "--monitor.log_every_steps", "3"))
        run = config.with_suffix("")
        skips = [event for event in read_events(run) if event["event"] == "step_skipped"]
        runs[name] = [[event[key] for key in ("step", "reason", "batch_digest", "segments")] for event in skips]
        runs[name].append(weights_of(run, 8))
    *host, weights = runs["host"]
    *device, device_weights = runs["device"]
    assert [event[:2] for event in host] == [[3, "loss_not_finite"], [4, "loss_not_finite"], [6, "skip_steps"]]
    assert device == host
    assert all(value.isfinite().all() and value.equal(device_weights[name]) for name, value in weights.items())


def test_a_rollback_waits_for_a_logged_step_where_the_device_decides(
    corpus: Path, tmp_path: Path, poison: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison |= dict.fromkeys((4, 5), math.nan)
    monkeypatch.setattr(bad_steps, "decides_on_device", lambda *_: True)
    config = write_config(tmp_path, corpus)
    options = ("--train.bad_steps.rollback_after", "2", "--checkpoint.every_steps", "2")
    with pytest.raises(
        UserError, match="2 bad steps in a row up to step 5, and no checkpoint that a rollback could use"
    ):
        train(load(config, *OVERRIDES, *options, "--checkpoint.every_steps", "4", "--monitor.log_every_steps", "5"))
    config = write_config(tmp_path, corpus, "again")
    train(load(config, *OVERRIDES, *options, "--monitor.log_every_steps", "5"))
    (event,) = (event for event in read_events(config.with_suffix("")) if event["event"] == "rolled_back")
    assert (event["step"], event["to_step"]) == (5, 2)


def test_a_rollback_waits_for_the_save_that_is_under_way(
    corpus: Path, tmp_path: Path, poison: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is done with a file only when somebody waits for it."""
    answer = FileWriter.answer
    monkeypatch.setattr(FileWriter, "answer", lambda self, *, wait: answer(self, wait=True) if wait else None)
    poison |= dict.fromkeys((5, 6), math.nan)
    config = write_config(tmp_path, corpus)
    options = ("--train.bad_steps.rollback_after", "2", "--train.bad_steps.rollback_steps", "1")
    train(load(config, *OVERRIDES, *options, "--checkpoint.every_steps", "3"))
    (event,) = (event for event in read_events(config.with_suffix("")) if event["event"] == "rolled_back")
    assert (event["step"], event["to_step"]) == (6, 3)


def test_spikes_are_skipped(corpus: Path, tmp_path: Path, poison: dict[int, float]) -> None:
    """A loss of twice its size is one; of a thirtieth more, none. What is left is the run that was told to skip it."""
    poison |= {11: 2.0, 12: 1.03}
    options = ("--train.steps", "13", "--train.bad_steps.spike_window", "16", "--checkpoint.every_steps", "20")
    weights = []
    for name, how in (("spike", ("--train.bad_steps.spike_factor", "10")), ("told", ("--train.skip_steps", "[11]"))):
        config = write_config(tmp_path, corpus, name)
        train(load(config, *OVERRIDES, *options, *how))
        weights.append(weights_of(config.with_suffix(""), 13))
    (event,) = (event for event in read_events(tmp_path / "spike") if event["event"] == "step_skipped")
    assert (event["step"], event["reason"]) == (11, "loss_spike")
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "stable_adamw", "lion"])
def test_optimizers_do_not_move_without_gradients(name: str) -> None:
    """What a skipped step leaves them, before and after their first step."""
    torch.manual_seed(0)
    module = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
    optimizer = make_optimizer(module, OptimizerConfig(name=name, learning_rate=0.1))  # type: ignore[arg-type]  # a str
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in module.parameters()]
        state = torch.tensor([v.sum() for s in optimizer.state.values() for v in s.values()])
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
        assert all(map(torch.equal, before, module.parameters()))
        assert torch.tensor([v.sum() for s in optimizer.state.values() for v in s.values()]).equal(state)
        module["layer"](torch.ones(4)).sum().backward()
        optimizer.step()
        assert not torch.equal(before[0], next(module.parameters()))


def test_who_decides() -> None:
    def decides(device: str, optimizer: torch.optim.Optimizer, config: BadStepsConfig) -> bool:
        return decides_on_device(torch.device(device), optimizer, Detector(config, ()))

    parameters = [torch.nn.Parameter(torch.ones(2))]
    fused, plain = (torch.optim.AdamW(parameters, fused=fused) for fused in (True, False))
    assert decides("cuda", fused, BadStepsConfig())
    assert not decides("cpu", fused, BadStepsConfig())
    assert not decides("cuda", plain, BadStepsConfig())
    assert not decides("cuda", torch.optim.Adam(parameters, fused=True), BadStepsConfig())
    assert not decides("cuda", fused, BadStepsConfig(spike_factor=10.0))
    assert not decides("cuda", fused, BadStepsConfig(nonfinite=False))


def test_ranks_that_decide_differently_stop() -> None:
    """The next step's reduction would show one refusal of two ranks."""
    control = SimpleNamespace(sum_integers=lambda *values: [0, 0, 1, 2 * values[3]])
    module: Any = SimpleNamespace(
        control=control, clock=SimpleNamespace(enter=lambda phase: None), trainer=SimpleNamespace(is_global_zero=True),
        budget=SimpleNamespace(elapsed_milliseconds=lambda: 0), stop_requested=lambda: False, step=7,
        loss=SimpleNamespace(terms=[None]),
        gate=SimpleNamespace(has_refused=True), saves=Saves(), plan=SimpleNamespace(world_size=2),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="step 7 was skipped by 1 of 2 ranks"):
        PretrainModule._begin_step(module, SimpleNamespace(window_counts=lambda terms: [5]))  # type: ignore[arg-type]
