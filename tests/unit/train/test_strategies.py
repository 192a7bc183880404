"""What a strategy is told, and the devices that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.base.ranks import rank_facts
from pipeline.config.run import PrecisionName, StrategyName, TrainConfig
from pipeline.train.strategies import make_strategy, resolve_device


def test_offloading_is_refused_on_a_cpu_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train = TrainConfig(strategy="zero1", offload_optimizer=True)
    with pytest.raises(UserError, match=r"train\.offload_optimizer: this run is on a CPU, where the optimizer state"):
        resolve_device(train, rank_facts({}))


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_is_told_to_offload_with_our_optimizer(
    strategy: StrategyName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    configs = []
    for offload in (False, True):
        train = TrainConfig(strategy=strategy, offload_optimizer=offload)
        made = make_strategy(train, rank_facts({}), torch.device("cpu"), 1000)
        configs.append(made.config)  # type: ignore[attr-defined]  # of DeepSpeed's strategy
    assert "offload_optimizer" not in configs[0]["zero_optimization"]
    assert configs[1]["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert configs[1]["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(("precision", "sums"), [("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp16")])
def test_deepspeed_is_told_how_to_sum_gradients(
    precision: PrecisionName, sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    train = TrainConfig(strategy="zero2", precision=precision)
    made = make_strategy(train, rank_facts({}), torch.device("cpu"), 1000)
    assert made.config["data_types"] == {"grad_accum_dtype": sums}  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("num_parameters", [1, 1000, 1001, 10**9 + 1])
def test_buckets_are_even_as_deepspeed_wants_them(num_parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    made: Any = make_strategy(TrainConfig(strategy="zero1"), rank_facts({}), torch.device("cpu"), num_parameters)
    bucket = made.config["zero_optimization"]["allgather_bucket_size"]
    assert bucket % 2 == 0
    assert bucket >= min(num_parameters, 500_000_000)


def test_deepspeed_halves_the_loss_scale_at_every_infinite_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's scaler; DeepSpeed's default lets the first one pass."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    train = TrainConfig(strategy="zero1", precision="fp16")
    made: Any = make_strategy(train, rank_facts({}), torch.device("cpu"), 1000)
    settings = (made.loss_scale, made.initial_scale_power, made.hysteresis)  # 0: the scale is dynamic
    assert settings == (0, 16, 1)


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_buckets_are_even_and_hold_the_whole_model(strategy: StrategyName, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed refuses to gather an odd number of elements, and roberta-base has 124,697,433 parameters."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for num_parameters, elements in ((1, 2), (1000, 1000), (124_697_433, 124_697_434), (10**9 + 1, 500_000_000)):
        made: Any = make_strategy(TrainConfig(strategy=strategy), rank_facts({}), torch.device("cpu"), num_parameters)
        sizes = {made.config["zero_optimization"][name] for name in ("allgather_bucket_size", "reduce_bucket_size")}
        assert sizes == {elements}
