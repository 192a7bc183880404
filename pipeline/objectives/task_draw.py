"""The objectives of a run, of which every optimizer step takes one: a pure function of the seed and the step.

Letters: T objectives.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from pipeline.base.keyed import hashes, key
from pipeline.data.gather import join_rows, split_rows
from pipeline.data.rows import Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.objective import Objective

_TASK: Final = int.from_bytes(b"TASK", "big")


def tasks_of_steps(seed: int, weights: Sequence[float], steps: Sequence[int]) -> list[int]:
    """Which of T objectives each step takes: t with probability ``weights[t] / sum(weights)``.

    The step's hash under ``key(seed, TASK)``, its upper 53 bits as a number in [0, 1), falls into one of T intervals of
    these lengths. So all ranks and micro-batches agree, and a resume goes on with the same objectives.

    Args:
        weights: above 0, (T,).
        steps: as logs count, from 1.
    """
    ends = np.cumsum(np.asarray(weights, np.float64))
    numbers = (hashes(key(seed, _TASK), np.asarray(steps, np.int64)) >> np.uint64(11)).astype(np.float64) / 2**53
    found = np.searchsorted(ends, numbers * ends[-1], side="right")
    return [min(task, len(weights) - 1) for task in found.tolist()]  # a product may be rounded up to the last end


class TaskDraw:
    """Prepares the rows of every step with the objective that it takes.

    Args:
        tasks: of one kind of row, (T,).
        weights: of each; a lone one takes every step.
    """

    def __init__(self, tasks: Sequence[Objective], weights: Sequence[float], seed: int) -> None:
        self.tasks = tasks
        self.weights = weights
        self.seed = seed

    @property
    def needs_words(self) -> bool:
        """Whether one of them reads ``Rows.word_starts``."""
        return any(task.needs_words for task in self.tasks)

    @property
    def needs_sentences(self) -> bool:
        """Whether one of them reads ``Rows.sentence_starts``."""
        return any(task.needs_sentences for task in self.tasks)

    def number_of_step(self, step: int) -> int:
        """Which objective a step takes, which is counted from 1."""
        return tasks_of_steps(self.seed, self.weights, [step])[0]

    def of_step(self, step: int) -> Objective:
        """The objective of a step, which is counted from 1."""
        return self.tasks[self.number_of_step(step)]

    def prepare_steps(
        self, rows: Rows, num_micro_batches: int, steps: Sequence[int], digested: Collection[int] = ()
    ) -> list[list[Batch]]:
        """As :meth:`Objective.prepare_steps`, every step with its objective."""
        if len(self.tasks) == 1:
            return self.tasks[0].prepare_steps(rows, num_micro_batches, steps, digested)
        of_steps = tasks_of_steps(self.seed, self.weights, steps)
        parts = list(split_rows(rows, [len(rows.row_numbers) // len(steps)] * len(steps)))
        prepared: list[list[Batch]] = [[] for _ in steps]
        for number, task in enumerate(self.tasks):
            places = [place for place, of_step in enumerate(of_steps) if of_step == number]
            if not places:
                continue
            own = join_rows([parts[place] for place in places])
            chosen = [steps[place] for place in places]
            wanted = [step for step in chosen if step in digested]
            made = task.prepare_steps(own, num_micro_batches, chosen, wanted)
            for place, batches in zip(places, made, strict=True):
                prepared[place] = [replace(batch, task=number) for batch in batches]
        return prepared

    def prepare_every(self, rows: Rows, num_micro_batches: int) -> list[Batch]:
        """The same rows with each of the objectives, one after the other; for evaluations."""
        return [
            replace(batch, task=number)
            for number, task in enumerate(self.tasks)
            for batch in task.prepare(rows, num_micro_batches)
        ]
