"""Each mistake in a mixture, in stages, in a warmup or in an exclusion has its one message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.checks import run_problems
from pipeline.config.run import (
    BatchWarmupConfig,
    DataConfig,
    ExclusionConfig,
    MixtureSourceConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
)

NAN, INFINITY = float("nan"), float("inf")


def problems(data: dict[str, Any] | None = None, **train: Any) -> list[str]:
    return run_problems(
        replace(
            RunConfig(run_directory="r"),
            data=DataConfig(**({"corpus": "c"} | (data or {}))),
            train=TrainConfig(**({"steps": 1000, "global_batch_size": 64} | train)),
        )
    )


def mixture(*sources: dict[str, Any]) -> dict[str, Any]:
    return {"corpus": "", "mixture": [MixtureSourceConfig(**source) for source in sources]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": [MixtureSourceConfig("d")]}, "data.corpus: 'c' and `data.mixture` exclude each other"),
        (mixture({"weight": 1.0}), "data.mixture.0.corpus: required"),
        (mixture({"corpus": "a"}, {"corpus": "a"}), "data.mixture.1.corpus: 'a' is there twice"),
        (mixture({"corpus": "a", "weight": 0.0}), "data.mixture.0.weight: 0.0 must be a finite number above 0"),
        (mixture({"corpus": "a", "weight": NAN}), "data.mixture.0.weight: nan must be"),
        (mixture({"corpus": "a", "epochs": 0}), "data.mixture.0.epochs: 0 is below 1"),
        ({"mixture_exponent": -0.5}, "data.mixture_exponent: -0.5 must be a finite number, 0 or more"),
        ({"mixture_exponent": INFINITY}, "data.mixture_exponent: inf must be"),
        ({"exclude": [ExclusionConfig()]}, "data.exclude.0: names no document"),
        ({"exclude": [ExclusionConfig(["a"], from_step=0)]}, "data.exclude.0.from_step: 0 is below 1, the first step"),
        ({"open_shards": 0}, "data.open_shards: 0 is below 1"),
        ({"workers": 10**6}, "data.workers: 1000000 is above 1000"),
        ({"prefetch_steps": 0}, "data.prefetch_steps: 0 is below 1"),
        ({"prefetch_steps": 10**12}, "data.prefetch_steps: 1000000000000 is above 10000"),
        ({"sequence_length": 0}, "data.sequence_length: 0 is below 8"),
    ],
)
def test_problems_of_the_data(data: dict[str, Any], message: str) -> None:
    (problem,) = problems(data)
    assert message in problem


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"steps": 10}], "train.stages.0.steps: the last stage goes on to the end of the run"),
        ([{"steps": 10}, {"tokens": 1e6}], "train.stages.1.tokens: the last stage goes on"),
        ([{}, {}], "train.stages.0: give either `steps` or `tokens`"),
        ([{"steps": 1, "tokens": 1.0}, {}], "train.stages.0: give either `steps` or `tokens`"),
        ([{"steps": 0}, {}], "train.stages.0.steps: 0 is below 1"),
        ([{"tokens": NAN}, {}], "train.stages.0.tokens: nan must be a finite number above 0"),
        ([{"steps": 1}, {"global_batch_size": 0}], "train.stages.1.global_batch_size: 0 is below 1"),
        (
            [{"steps": 1}, {"global_batch_size": 10**9}],
            "train.stages.1.global_batch_size: 1000000000 is above 16777216",
        ),
        ([{"steps": 1, "sequence_length": 7}, {}], "train.stages.0.sequence_length: 7 is below 8"),
        ([{"steps": 1, "sequence_length": 513}, {}], "train.stages.0.sequence_length: 513 is longer than the model's"),
        ([{"steps": 10**400}, {}], "is above 140737488355328"),
        ([{"steps": 10**14}, {}], "train.steps: the run and its stages have 6.4e+15 rows; at most 1.4e+14 can be"),
        ([{"tokens": 1e300}, {}], "train.steps: the run and its stages have 2.0e+297 rows"),
    ],
)
def test_problems_of_the_stages(stages: list[dict[str, Any]], message: str) -> None:
    (problem,) = problems(stages=[StageConfig(**stage) for stage in stages])
    assert message in problem


@pytest.mark.parametrize(
    ("warmup", "stages", "message"),
    [
        ({"tokens": NAN}, [], "train.batch_warmup.tokens: nan must be a finite number, 0 or more"),
        ({"tokens": INFINITY}, [], "train.batch_warmup.tokens: inf must be a finite number, 0 or more"),
        ({"tokens": 1e5, "start": 0}, [], "start is 0 and increment 32; both must be at least 1"),
        ({"tokens": 1e5, "increment": -1}, [], "start is 32 and increment -1; both must be at least 1"),
        ({"tokens": 1e5, "start": 64}, [], "64 is not below the global batch it grows to (64)"),
        ({"tokens": 1e9}, [], "takes 61036 steps, more than the run (train.steps: 1000)"),
        ({"tokens": 1e5}, [{"steps": 2}, {}], "takes 7 steps, 5 more than the first stage has; shorten it"),
        ({"tokens": 1e5}, [{"tokens": 5e4}, {}], "takes 7 steps, 1 more than the first stage has; shorten it"),
        ({"tokens": 1e5, "increment": 1}, [{"steps": 9, "global_batch_size": 2**20}, {}], "makes 1048544 sizes on the"),
    ],
)
def test_problems_of_the_batch_warmup(warmup: dict[str, Any], stages: list[dict[str, Any]], message: str) -> None:
    (problem,) = problems(stages=[StageConfig(**stage) for stage in stages], batch_warmup=BatchWarmupConfig(**warmup))
    assert message in problem


def test_a_warmup_as_long_as_the_first_stage_is_none() -> None:
    warmup = BatchWarmupConfig(tokens=1e5)  # 6.1 steps of 32 rows
    assert problems(stages=[StageConfig(steps=7), StageConfig()], batch_warmup=warmup) == []
    assert problems(stages=[StageConfig(tokens=1e5), StageConfig()], batch_warmup=warmup) == []
