"""The gradient of a step is the same however its rows are split: ranks x accumulation x micro-batch, packed or not.

The truth is `plain_training.py`, a loop over single segments in fp64. Real runs must follow it for every objective.
Gradient descent, not Adam, which would hide a wrong scale.

The batch of 7 rows divides by nothing: ranks and micro-batches are filled with rows that predict nothing, and windows
of accumulation end with them. The epochs of the corpus end inside a step. Every step is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers

from pipeline.config.model import ModelConfig
from pipeline.config.run import Family
from pipeline.models.build import hf_config
from pipeline.models.teacher import read_teacher
from pipeline.train import saving, setup, teachers
from pipeline.train.module import PretrainModule
from pipeline.train.setup import make_model
from tests.corpora import SPECIAL_IDS, random_lengths, write_corpus
from tests.distributed.plain_training import Steps, plain_training
from tests.rankpool import RankPool
from tests.runs import column, run_rank, write_config

# Initial weights of 0.1: of 0.2 the plain loop itself, in fp32, is up to 2e-6 away from fp64; of these 5e-7 at most.
STEPS = 4
VOCAB_SIZE = 200
CLIP_NORM = 0.05
SETTINGS = [
    *("--train.steps", str(STEPS), "--train.global_batch_size", "7", "--train.gradient_clip_norm", str(CLIP_NORM)),
    *("--model.hidden_dropout", "0", "--model.initializer_range", "0.1", "--optimizer.learning_rate", "2"),
    *("--schedule.warmup_steps", "0", "--evaluation.every_steps", "0", "--evaluation.rows", "1"),
]
OBJECTIVES = {
    "token": ["--objective.masking", "token"],
    "whole_word": ["--objective.masking", "whole_word"],
    "span": ["--objective.masking", "span"],
    "mlm+nsp": ["--objective.name", "mlm+nsp", "--data.packing", "pairs_nsp"],
    "mlm+sop": ["--objective.name", "mlm+sop", "--data.packing", "pairs_sop", "--model.family", "albert"],
    "mixture": [
        *("--data.packing", "pairs_nsp", "--objective.mixture"),
        "[{name: mlm, weight: 0.5}, {name: mlm, label: dense, mask_rate: 0.4, weight: 0.5}, {name: mlm+nsp}]",
    ],
    "clm": ["--model.family", "gpt2", "--objective.name", "clm"],
    "static": ["--objective.mask_copies", "1"],
    "context": ["--model.family", "gpt2", "--objective.name", "clm", "--data.context_tokens", "4"],
    "rtd": [
        *("--model.family", "electra", "--objective.name", "rtd", "--model.generator_size", "0.5"),
        *("--objective.mask_token_share", "1", "--objective.random_token_share", "0"),
    ],
    "distil": ["--objective.name", "distil", "--objective.teacher", "bert"],
    "distil gpt2": ["--model.family", "gpt2", "--objective.name", "distil", "--objective.teacher", "gpt2"],
    "denoise": ["--model.family", "bart", "--objective.name", "denoise"],
}
PROOFS = ("whole_word", "span", "static", "context", "distil gpt2")
"""For every change another objective shows the same: of the kinds of masking, and of teachers, one is enough."""
TWO_MODELS = ("rtd", "distil", "denoise")
PROOF_SPLITS = (["ddp", 2], ["zero1", 3])
"""For every change these runs, which take twice as long, have another split of the same kind."""
# strategy, ranks, rows of a micro-batch
EXACT_SPLITS = [("single", 1, 3), ("ddp", 2, 2), ("ddp", 3, 1)]
ZERO_SPLITS = [("zero1", 3, 2), ("zero2", 2, 2), ("zero3", 2, 3)]

Truths = Callable[[str], tuple[Steps, list[float], list[float], Any]]
"""From an objective to gradients, losses, norms, last weights."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "corpus"
    return write_corpus(directory, random_lengths(0, 2, 9), vocab_size=VOCAB_SIZE, words=True).directory


def _recorded_run(config_path: str, overrides: list[str]) -> tuple[Steps, dict[str, np.ndarray]]:
    """A real run; the gradients of its steps as the optimizer is about to get them, and the last weights."""
    gradients: Steps = []
    weights: dict[str, np.ndarray] = {}
    zero = any(word.startswith("zero") for word in overrides)

    def record(module: PretrainModule, optimizer: Any) -> None:
        if module.finishes_step:
            partitioned = [parameter.numel() == 0 for parameter in module.model.parameters()]
            assert all(partitioned) if "zero3" in overrides else not any(partitioned)
            named = module.model.named_parameters()
            gradients.append({name: _whole_gradient(p, zero).double().numpy().copy() for name, p in named})

    def gradient_descent(module: PretrainModule) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": list(module.model.parameters()), "lr_scale": 1.0}], lr=0.0)

    def record_weights(module: PretrainModule) -> None:
        named = module.model.named_parameters()
        weights.update({name: _whole_weight(p, zero).double().numpy().copy() for name, p in named})

    def model_in_precision(*arguments: Any) -> Any:
        return make_model(*arguments) if zero else make_model(*arguments).double()

    def teacher_in_precision(folder: Path, dtype: torch.dtype) -> Any:
        return read_teacher(folder, dtype if zero else torch.float64)

    with (
        mock.patch.object(setup, "make_model", model_in_precision),
        mock.patch.object(teachers, "read_teacher", teacher_in_precision),
        mock.patch.object(teachers, "read_vocabulary", return_value=None),  # the corpus of random tokens has no words
        mock.patch.object(PretrainModule, "configure_optimizers", gradient_descent),
        mock.patch.object(PretrainModule, "on_before_optimizer_step", record),
        mock.patch.object(PretrainModule, "on_train_end", record_weights),
        mock.patch.object(saving, "rank_pieces", return_value=[]),  # plain gradient descent is none of our optimizers
    ):
        run_rank(config_path, overrides)
    return gradients, weights


def _whole_gradient(parameter: torch.nn.Parameter, zero: bool) -> torch.Tensor:
    if not zero:
        assert parameter.grad is not None
        return parameter.grad
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)


def _whole_weight(parameter: torch.nn.Parameter, zero: bool) -> torch.Tensor:
    if not zero:
        return parameter.detach()
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter)


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of every objective, teachers being folders."""
    folders = {name: str(_teacher(name, tmp_path_factory.mktemp("teacher"))) for name in ("bert", "gpt2")}
    return {
        name: [
            folders.get(word, word) if before == "--objective.teacher" else word
            for before, word in pairwise(["", *own])
        ]
        for name, own in OBJECTIVES.items()
    }


def _teacher(family: Family, folder: Path) -> Path:
    """A model as wide as the student and deeper, with other weights, as transformers saves it."""
    shape = ModelConfig(
        family=family,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        intermediate_size=48,
        max_positions=64,
        initializer_range=0.3,
    )
    config = hf_config(shape, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    torch.manual_seed(5)
    getattr(transformers, config.architectures[0])(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def truths(corpus: Path, settings_of: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Truths:
    """Of every objective when it is first asked for."""
    config = write_config(tmp_path_factory.mktemp("truth"), corpus)
    return cache(lambda name: plain_training(str(config), [*SETTINGS, *settings_of[name]]))


def relative_error(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Norm of the difference over the norm of the truth, all tensors as one vector."""
    assert found.keys() == truth.keys()
    difference = sum(float(((found[name] - truth[name]) ** 2).sum()) for name in truth)
    return (difference / sum(float((value**2).sum()) for value in truth.values())) ** 0.5


def cases() -> list[Any]:
    """Every objective with every split."""
    found = []
    for *split, tolerance in [*((*split, 1e-12) for split in EXACT_SPLITS), *((*split, 1e-6) for split in ZERO_SPLITS)]:
        for name in OBJECTIVES:
            proof = name in PROOFS or (name in TWO_MODELS and split[:2] in PROOF_SPLITS)
            found.append(pytest.param(*split, tolerance, name, marks=pytest.mark.proof if proof else ()))
    return found


@pytest.mark.parametrize(("strategy", "world_size", "micro_batch_size", "tolerance", "objective"), cases())
def test_any_split_has_the_gradient_of_the_plain_loop(
    strategy: str,
    world_size: int,
    micro_batch_size: int,
    tolerance: float,
    objective: str,
    truths: Truths,
    settings_of: dict[str, list[str]],
    rank_pool: RankPool,
    corpus: Path,
    tmp_path: Path,
) -> None:
    gradients, losses, norms, weights = truths(objective)
    assert min(norms) > 2 * CLIP_NORM, "a step is not clipped"
    config = write_config(tmp_path, corpus)
    overrides = [*SETTINGS, *settings_of[objective], "--train.strategy", strategy]
    overrides += ["--train.micro_batch_size", str(micro_batch_size)]
    by_rank = rank_pool.run(_recorded_run, str(config), overrides, world_size=world_size)
    for found, found_weights in by_rank:
        assert len(found) == STEPS
        assert [relative_error(*pair) for pair in zip(found, gradients, strict=True)] == pytest.approx(
            [0.0] * STEPS, abs=tolerance
        )
        assert relative_error(found_weights, weights) < tolerance
    run = config.with_suffix("")
    assert column(run, "loss") == pytest.approx(losses, rel=tolerance)
    assert column(run, "grad_norm") == pytest.approx(norms, rel=tolerance)
