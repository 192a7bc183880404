"""What types cannot say of a mixture of objectives: what its tasks must share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from pipeline.config.hugging_face import AUTO
from pipeline.config.objective import ObjectiveName, TaskConfig, alone
from pipeline.config.ranges import positive
from pipeline.config.run import PAIR_OBJECTIVES, RunConfig

_LABEL: Final = re.compile(r"[A-Za-z0-9+.-]+")
_TAKEN_LABELS: Final = ("scale",)
"""`loss_scale` is another metric."""

_MODEL_OF: Final[dict[ObjectiveName, str]] = {
    "rtd": "a generator and a discriminator",
    "denoise": "an encoder and a decoder",
}
"""What objectives train that others do not."""


def mixture_problems(config: RunConfig, of_objective: Callable[[RunConfig], Sequence[str]]) -> list[str]:
    """All problems of a run's objectives.

    Args:
        of_objective: those of a run with one objective, each beginning with the key that it is about.
    """
    tasks = config.objective.mixture
    if not tasks:
        return list(of_objective(config))
    found: list[str] = []
    for number, task in enumerate(tasks):
        where = f"objective__mixture__{number}__weight"
        found += positive(**{where: task.weight})
        for problem in of_objective(replace(config, objective=alone(task))):
            found.append(re.sub(r"^objective\.", f"objective.mixture.{number}.", problem))
    shared = list(_sharing_problems(tasks))
    if config.model.family == AUTO and {"clm", "mlm"} <= {task.name for task in tasks}:
        shared.append(
            "objective.mixture: `clm` reads rows without the special tokens of `mlm`, and lets a token see nothing "
            "after it; keep one of them."
        )
    if _packings(tasks)[1:]:  # each would be told to set its own
        found = [problem for problem in found if not problem.startswith("data.packing:")]
    if config.train.bad_steps.spike_factor is not None:
        shared.append(
            "train.bad_steps.spike_factor: the losses of a mixture's objectives have levels of their own, and the "
            "rarer one would be taken for a spike; leave it out."
        )
    return list(dict.fromkeys([*found, *_label_problems(tasks), *shared]))


def _packings(tasks: Iterable[TaskConfig]) -> list[str]:
    return list(dict.fromkeys(PAIR_OBJECTIVES[task.name] for task in tasks if task.name in PAIR_OBJECTIVES))


def _sharing_problems(tasks: Sequence[TaskConfig]) -> Iterator[str]:
    names = list(dict.fromkeys(task.name for task in tasks))
    for name, model in _MODEL_OF.items():
        if name in names and len(names) > 1:
            other = next(each for each in names if each != name)
            yield (
                f"objective.mixture: `{name}` trains {model}, and `{other}` does not: a run trains one model with one "
                f"head. Mix `{name}` with itself under other settings, or leave it out."
            )
    if len(packings := _packings(tasks)) > 1:
        pairs = " and ".join(f"`{name}`" for name in names if name in PAIR_OBJECTIVES)
        yield (
            f"objective.mixture: {pairs} learn from rows of different packings ({', '.join(packings)}), and a run has "
            "one; keep one of them."
        )
    if packings and "distil" in names:
        pair = next(name for name in names if name in PAIR_OBJECTIVES)
        yield (
            f"objective.mixture: `{pair}` needs a model with a head for pairs, and `distil` has a teacher without; "
            "leave one of them out."
        )
    teachers = {task.teacher for task in tasks if task.name == "distil" and task.teacher}
    if len(teachers) > 1:
        yield (
            f"objective.mixture: {len(teachers)} teachers ({', '.join(sorted(teachers))}): a run has memory for one; "
            "name the same everywhere."
        )


def _label_problems(tasks: Sequence[TaskConfig]) -> Iterator[str]:
    labels: list[str] = []
    for number, task in enumerate(tasks):
        where, label = f"objective.mixture.{number}.label", task.shown_label
        if not _LABEL.fullmatch(label):
            yield f"{where}: {label!r}: letters, digits, `+`, `-` and `.` only; it is part of the names of metrics."
        elif label in _TAKEN_LABELS:
            yield f"{where}: `loss_{label}` is another metric; choose another label."
        elif label in labels:
            yield f"{where}: `{label}` is used twice; give each objective a label of its own."
        labels.append(label)
