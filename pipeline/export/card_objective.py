"""What a model card says of the objectives of a run. Pure: a config in, sentences out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.config.derived import row_objective
from pipeline.config.objective import ObjectiveConfig, ObjectiveName
from pipeline.config.run import RunConfig

_LEARNED: Final[Mapping[ObjectiveName, str]] = {
    "mlm": "predicting masked tokens",
    "mlm+nsp": "predicting masked tokens and next sentences",
    "mlm+sop": "predicting masked tokens and the order of sentences",
    "rtd": "telling tokens that a small model had replaced",
    "clm": "predicting the next token",
    "denoise": "restoring noisy text",
    "distil": "predicting tokens as another model does",
}

_UNITS: Final = {"token": "", "whole_word": " in whole words", "span": " in spans of words"}

_PAIRS: Final[Mapping[ObjectiveName, str]] = {
    "mlm+nsp": "next-sentence prediction: whether the second part of a pair is what follows the first",
    "mlm+sop": "sentence-order prediction: whether the two parts of a pair stand in their order",
}


def learned(config: RunConfig, generator: bool) -> str:
    """By what the exported model was trained, e.g. ``predicting masked tokens``.

    Args:
        generator: it is the small model of replaced-token detection.
    """
    if generator:
        return "predicting masked tokens, as the generator of replaced-token detection"
    return ", and by ".join(dict.fromkeys(_LEARNED[task.name] for task in config.objective.tasks))


def objective_text(config: RunConfig, generator: bool) -> str:
    """The objective of a run with its settings, or those of its mixture with their shares of the steps."""
    tasks = config.objective.mixture
    if not tasks:
        return _of_task(config, config.objective, generator)
    total = sum(task.weight for task in tasks)
    return "; ".join(
        f"{task.weight / total:.0%} of the steps ({task.shown_label}) {_of_task(config, task, generator)}"
        for task in tasks
    )


def has_several_terms(task: ObjectiveConfig) -> bool:
    """Whether the loss of an objective is a weighted sum, so no nats a prediction."""
    return task.name in ("mlm+nsp", "mlm+sop", "rtd", "distil")


def _of_task(config: RunConfig, task: ObjectiveConfig, generator: bool) -> str:
    if task.name == "denoise":
        return _denoising(task)
    if task.name == "rtd":
        return (
            f"replaced-token detection: a generator learns {_masked(task)}; the discriminator, with weight "
            f"{task.discriminator_weight:g} beside the generator's 1, tells the tokens that the generator has "
            f"replaced. This is the {'generator' if generator else 'discriminator'}"
        )
    if task.name == "distil":
        return _distillation(config, task)
    if task.name == "clm":
        return "causal language modelling"
    pairs = _PAIRS.get(task.name)
    return _masked(task) + (f"; and {pairs}" if pairs else "")


def _masked(task: ObjectiveConfig) -> str:
    fixed = "" if task.mask_copies is None else f"; {task.mask_copies} fixed choice(s) of masks, one an epoch in turn"
    return (
        f"masked language modelling: {task.mask_rate:.0%} of the tokens{_UNITS[task.masking]}, of these "
        f"{_replaced(task)}{fixed}"
    )


def _replaced(task: ObjectiveConfig) -> str:
    kept = 1 - task.mask_token_share - task.random_token_share
    return f"{task.mask_token_share:.0%} masked, {task.random_token_share:.0%} random, {kept:.0%} kept"


def _distillation(config: RunConfig, task: ObjectiveConfig) -> str:
    is_causal = row_objective(config, task).name == "clm"
    weights = [f"{task.hard_weight:g} (the true tokens)"]
    weights += [f"{task.soft_weight:g} (the teacher's distribution)"] if task.soft_weight else []
    weights += [f"{task.cosine_weight:g} (the last hidden states)"] if task.cosine_weight else []
    teacher = f" of `{Path(task.teacher).name}`" if task.teacher else ""
    return (
        f"distillation{teacher}, temperature {task.temperature:g}, with weights {', '.join(weights)}, at the "
        f"predictions of {'causal language modelling' if is_causal else _masked(task)}"
    )


def _denoising(task: ObjectiveConfig) -> str:
    noise = [
        (task.permute_sentences, f"the sentences of {task.permute_sentences:.0%} of the texts shuffled"),
        (
            task.infilling_rate,
            f"{task.infilling_rate:.0%} of the tokens in spans (of {task.infilling_mean:g} on average) that become one "
            "mask token each",
        ),
        (task.deletion_rate, f"{task.deletion_rate:.0%} of the tokens left out"),
        (task.token_mask_rate, f"{task.token_mask_rate:.0%} of the tokens masked one by one"),
        (task.rotation, f"{task.rotation:.0%} of the texts rotated to begin at a random token"),
        (
            task.span_mask_rate,
            f"one span of {task.span_mask_rate:.0%} of every text hidden token by token ({_replaced(task)})",
        ),
    ]
    done = "; ".join(text for rate, text in noise if rate) or "no noise"
    predicted = "the tokens of the span only" if task.predict == "masked" else "the whole clean text"
    return f"denoising: {done}; the decoder predicts {predicted}"
