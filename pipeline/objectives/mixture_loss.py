"""The loss of several objectives that take turns: each step has the terms of one, and nothing of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn

from pipeline.objectives.batch import Batch
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.terms import Term, loss_metrics


@dataclass(frozen=True)
class MixtureLoss:
    """What a run with a mixture minimises."""

    tasks: tuple[PackedLoss, ...]

    labels: tuple[str, ...]
    """Of the tasks, in the names of their metrics."""

    weights: tuple[float, ...]
    """Of the tasks in the held-out loss, by which they are drawn."""

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Of all tasks, one after the other."""
        return tuple(replace(term, task=number) for number, loss in enumerate(self.tasks) for term in loss.terms)

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """The sum of every term over a batch, as :meth:`PackedLoss.sums`; 0 where it is none of the batch's task."""
        own = self.tasks[batch.task].sums(model, batch)
        before = sum(term.task < batch.task for term in self.terms)
        nothing = own[0].new_zeros(())
        return (*(nothing,) * before, *own, *(nothing,) * (len(self.terms) - before - len(own)))

    def has_teacher(self, task: int) -> bool:
        """Whether another model computes beside the task's."""
        return self.tasks[task].has_teacher(0)

    def with_functions(self, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Self:
        """The same with its functions changed, e.g. compiled."""
        return replace(self, tasks=tuple(loss.with_functions(change) for loss in self.tasks))

    def metrics(self, sums: Sequence[float], counts: Sequence[int], task: int) -> dict[str, float | None]:
        """Of a step: ``loss``, the same as ``loss_LABEL``, and where the task has several terms ``loss_LABEL_TERM``."""
        own = [number for number, term in enumerate(self.terms) if term.task == task]
        terms = self.tasks[task].terms
        found = loss_metrics(terms, [sums[number] for number in own], [counts[number] for number in own])
        return {"loss": found["loss"], **labelled(found, self.labels[task])}

    def held_out(self, metrics: Sequence[dict[str, float]]) -> dict[str, float]:
        """Of an evaluation: ``loss``, the mean of the tasks' by weight, and the metrics of each under its label.

        Args:
            metrics: of each task as if it were alone.
        """
        total = sum(weight * found["loss"] for weight, found in zip(self.weights, metrics, strict=True))
        own = [labelled(found, label) for label, found in zip(self.labels, metrics, strict=True)]
        return {"loss": total / sum(self.weights), **{name: value for found in own for name, value in found.items()}}


def labelled(metrics: dict[str, Any], label: str) -> dict[str, Any]:
    """Metrics of one task under the names that they have in a mixture.

    ``loss`` becomes ``loss_LABEL``, ``loss_TERM`` becomes ``loss_LABEL_TERM``, and ``accuracy_TERM`` the like, or
    ``accuracy_LABEL`` where it is the only one.
    """
    lone = sum(name.startswith("accuracy_") for name in metrics) == 1
    named: dict[str, Any] = {}
    for name, value in metrics.items():
        kind, _, term = name.partition("_")
        if name == "bits_per_token":
            named[f"{name}_{label}"] = value
        elif not term or (lone and kind == "accuracy"):
            named[f"{kind}_{label}"] = value
        else:
            named[f"{kind}_{label}_{term}"] = value
    return named
