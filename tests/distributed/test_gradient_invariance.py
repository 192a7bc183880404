"""The gradient of a step is the same however its rows are split: ranks x accumulation x micro-batch, packed or not.

The truth is a loop that knows no packing, no micro-batch and no rank: the stock class on one segment at a time, one
mean over all predictions of the global batch, clipping, plain gradient descent, all in fp64. Real runs must follow it
for every objective. Gradient descent, not Adam, which would hide a wrong scale.

The batch of 7 rows divides by nothing: ranks and micro-batches are filled with rows that predict nothing, and windows
of accumulation end with them. The epochs of the corpus end inside a step. Every step is clipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from pipeline.config.derived import head_of
from pipeline.config.loading import load_run_config
from pipeline.data.rows import NO_PAIR
from pipeline.models.build import hf_config
from pipeline.models.families import FAMILIES, model_class_name
from pipeline.optim.schedules import learning_rate
from pipeline.train import saving, setup
from pipeline.train.module import PretrainModule
from pipeline.train.setup import make_model
from pipeline.train.streams import open_streams
from tests.corpora import random_lengths, write_corpus
from tests.rankpool import RankPool
from tests.runs import column, run_rank, write_config

STEPS = 4
CLIP_NORM = 0.05
SETTINGS = [
    *("--train.steps", str(STEPS), "--train.global_batch_size", "7", "--train.gradient_clip_norm", str(CLIP_NORM)),
    *("--model.hidden_dropout", "0", "--model.initializer_range", "0.2", "--optimizer.learning_rate", "2"),
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
}
# strategy, ranks, rows of a micro-batch
EXACT_SPLITS = [("single", 1, 3), ("ddp", 2, 2), ("ddp", 3, 1)]
ZERO_SPLITS = [("zero1", 3, 2), ("zero2", 2, 2), ("zero3", 2, 3)]

Steps = list[dict[str, np.ndarray]]
"""Gradients before clipping by name, fp64, a step each."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "corpus"
    return write_corpus(directory, random_lengths(0, 2, 9), vocab_size=200, words=True).directory


def _plain_training(config_path: str, overrides: list[str]) -> tuple[Steps, list[float], list[float], Any]:
    """The truth: gradients, losses, norms, last weights."""
    config = load_run_config(config_path, overrides)
    streams = open_streams(config)
    assert streams.train.num_rows < STEPS * 7, "no epoch ends within the run"
    facts = {"vocab_size": streams.manifest.vocab_size, "special_ids": streams.manifest.special_ids}
    head = head_of(config)
    model_class = getattr(transformers, model_class_name(config.model, head))
    model = model_class(hf_config(config.model, **facts, head=head)).double()
    model.load_state_dict(make_model(config, streams).state_dict())
    gradients, losses, norms = [], [], []
    for step in range(STEPS):
        rows = streams.train.rows(step)
        objective = streams.objective(config.seed, config.data.sequence_length, step + 1)
        pairs = getattr(objective, "with_pairs", False)
        input_ids, labels = (torch.from_numpy(array) for array in objective.labels_of(rows))
        totals = [torch.zeros((), dtype=torch.float64)] * 2
        for number, row in enumerate(rows.segment_row):
            start, end = (int(rows.segment_start[number] + at) for at in (0, rows.segment_length[number]))
            own = labels[row, start:end]
            if pairs:
                types = (torch.arange(start, end) >= int(rows.second_start[number])).long()[None]
                outputs = model(input_ids[row, start:end][None], token_type_ids=types)
                of_pair = outputs[FAMILIES[config.model.family].pair_head.logits]
                label = torch.tensor([int(rows.pair_label[number])])
                totals[1] = totals[1] + cross_entropy(of_pair, label, reduction="sum")
            else:
                outputs = model(input_ids[row, start:end][None])
            totals[0] = totals[0] + cross_entropy(outputs[0][0], own, reduction="sum")
        loss = totals[0] / (labels != -100).sum()
        if pairs:
            loss = loss + totals[1] / int((rows.pair_label != NO_PAIR).sum())
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for parameter in model.parameters():  # of a head that the step's objective does not use
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append({name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()})
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM).item())
        rate = learning_rate(step, config.schedule, config.optimizer, STEPS)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
    return gradients, losses, norms, {name: p.detach().numpy() for name, p in model.named_parameters()}


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

    with (
        mock.patch.object(setup, "make_model", model_in_precision),
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
def truths(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = write_config(tmp_path_factory.mktemp("truth"), corpus)
    return {name: _plain_training(str(config), [*SETTINGS, *own]) for name, own in OBJECTIVES.items()}


def relative_error(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Norm of the difference over the norm of the truth, all tensors as one vector."""
    assert found.keys() == truth.keys()
    difference = sum(float(((found[name] - truth[name]) ** 2).sum()) for name in truth)
    return (difference / sum(float((value**2).sum()) for value in truth.values())) ** 0.5


# Of the kinds of masking one is enough for every change; which tokens are masked has tests of its own.
@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=pytest.mark.proof if name in ("whole_word", "span") else ()) for name in OBJECTIVES],
)
@pytest.mark.parametrize(
    ("strategy", "world_size", "micro_batch_size", "tolerance"),
    [*((*split, 1e-12) for split in EXACT_SPLITS), *((*split, 1e-6) for split in ZERO_SPLITS)],
)
def test_any_split_has_the_gradient_of_the_plain_loop(
    strategy: str,
    world_size: int,
    micro_batch_size: int,
    tolerance: float,
    objective: str,
    truths: dict[str, Any],
    rank_pool: RankPool,
    corpus: Path,
    tmp_path: Path,
) -> None:
    gradients, losses, norms, weights = truths[objective]
    assert min(norms) > 2 * CLIP_NORM, "a step is not clipped"
    config = write_config(tmp_path, corpus)
    overrides = [*SETTINGS, *OBJECTIVES[objective], "--train.strategy", strategy]
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
