"""Which objective of a mixture a step takes: shares by weight, and nothing but the seed and the step decides."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.run import ObjectiveConfig
from pipeline.data.gather import join_rows
from pipeline.data.row_format import row_format
from pipeline.data.rows import Rows
from pipeline.data.stream import open_stream
from pipeline.objectives.batch import Batch
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective
from pipeline.objectives.task_draw import TaskDraw, tasks_of_steps
from pipeline.objectives.terms import Term
from tests.corpora import Corpus, random_lengths, write_corpus

WEIGHTS = (0.7, 3.0, 0.05, 1.25)
STEPS = 100_000
# Upper 0.1 % points of the chi-square distribution with 1, 3 and 15 degrees of freedom.
CRITICAL = {1: 10.828, 3: 16.266, 15: 37.697}


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = shares * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62])
def test_the_shares_of_the_steps_are_the_weights(seed: int) -> None:
    drawn = np.array(tasks_of_steps(seed, WEIGHTS, range(1, STEPS + 1)))
    shares = np.array(WEIGHTS) / sum(WEIGHTS)
    assert chi_square(np.bincount(drawn, minlength=4), shares) < CRITICAL[3]
    # Neighbouring steps are independent.
    following = np.bincount(drawn[:-1:2] * 4 + drawn[1::2], minlength=16)
    assert chi_square(following, np.outer(shares, shares).ravel()) < CRITICAL[15]
    halves = np.bincount(tasks_of_steps(seed, (2, 2), range(1, STEPS + 1)))
    assert chi_square(halves, np.array([0.5, 0.5])) < CRITICAL[1]


def test_a_draw_is_of_the_seed_and_the_step_alone() -> None:
    steps = list(range(1, 301))
    drawn = tasks_of_steps(7, WEIGHTS, steps)
    assert [tasks_of_steps(7, WEIGHTS, [step])[0] for step in steps] == drawn
    assert tasks_of_steps(7, WEIGHTS, steps[::-1]) == drawn[::-1]
    assert tasks_of_steps(7, [10 * weight for weight in WEIGHTS], steps) == drawn
    assert tasks_of_steps(8, WEIGHTS, steps) != drawn
    assert tasks_of_steps(7, [3.0], steps) == [0] * 300
    assert tasks_of_steps(7, [1e-300, 1.0], [10**15]) == [1]


def test_another_process_draws_the_same() -> None:
    code = (
        "import json; from pipeline.objectives.task_draw import tasks_of_steps; "
        f"print(json.dumps(tasks_of_steps(3, {WEIGHTS}, range(1, 201))))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == tasks_of_steps(3, WEIGHTS, range(1, 201))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("draw") / "corpus"
    return write_corpus(directory, random_lengths(0, 3, 30), vocab_size=200, words=True)


def rows_and_draw(corpus: Corpus) -> tuple[list[Rows], TaskDraw]:
    stream = open_stream(
        corpus.files, kind="bert", sequence_length=64, global_batch_size=6, packing="pairs_nsp", seed=1, words=True
    )
    form = row_format(corpus.manifest, "bert", 64)
    configs = (
        ObjectiveConfig(),
        ObjectiveConfig(masking="span", mask_rate=0.3),
        ObjectiveConfig(name="mlm+nsp"),
    )
    tasks: list[Objective] = [
        make_objective(config, corpus.manifest, form, 3, packing="pairs_nsp") for config in configs
    ]
    return [stream.rows(step) for step in range(9)], TaskDraw(tasks, (1, 1, 1), 3)


def values_of(batch: Batch) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}


@pytest.mark.parametrize("at_once", [1, 4, 9])
def test_every_step_is_prepared_as_its_objective_alone_prepares_it(corpus: Corpus, at_once: int) -> None:
    rows, draw = rows_and_draw(corpus)
    numbers = list(range(1, 10))
    drawn = tasks_of_steps(3, draw.weights, numbers)
    assert set(drawn) == {0, 1, 2}
    digested = [number for number in numbers if number % 3]
    found: list[list[Batch]] = []
    for begin in range(0, 9, at_once):
        part = slice(begin, begin + at_once)
        found += draw.prepare_steps(join_rows(rows[part]), 2, numbers[part], digested)
    for own, number, task, batches in zip(rows, numbers, drawn, found, strict=True):
        assert draw.of_step(number) is draw.tasks[task]
        alone = draw.tasks[task].prepare(own, 2, number, digests=number in digested)
        assert len(batches) == len(alone) == 2
        for one, other in zip(batches, alone, strict=True):
            assert one.task == task
            assert values_of(one) == values_of(other) | {"task": task}


def test_evaluations_prepare_the_same_rows_with_every_objective(corpus: Corpus) -> None:
    rows, draw = rows_and_draw(corpus)
    batches = draw.prepare_every(rows[0], 2)
    assert [batch.task for batch in batches] == [0, 0, 1, 1, 2, 2]
    expected = [batch for task in draw.tasks for batch in task.prepare(rows[0], 2)]
    assert all(torch.equal(one.labels, other.labels) for one, other in zip(batches, expected, strict=True))
    assert draw.needs_words
    assert not draw.needs_sentences


def test_a_step_counts_nothing_of_other_objectives(corpus: Corpus) -> None:
    rows, draw = rows_and_draw(corpus)
    terms = [Term("mlm", "predictions"), Term("mlm", "predictions", task=2), Term("nsp", "pairs", task=2)]
    first, *_, last = draw.prepare_every(rows[0], 1)
    assert first.window_counts(terms) == [first.window_predictions, 0, 0]
    assert last.window_counts(terms) == [0, last.window_predictions, last.window_pairs]
    assert first.num_pairs == 0 < last.num_pairs
