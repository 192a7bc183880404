"""Contradictions around the masked span of `denoise` and what its loss counts."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config.objective import ObjectiveConfig

_OTHER_NOISE = ("infilling_rate", "permute_sentences", "deletion_rate", "token_mask_rate", "rotation")


def masked_span_problems(objective: ObjectiveConfig) -> Iterator[str]:
    """Problems of `objective.span_mask_rate` and `objective.predict`."""
    if objective.name != "denoise":
        if objective.span_mask_rate != 0:
            yield f"objective.span_mask_rate: has no use for `{objective.name}`, only for `denoise`; leave it out."
        if objective.predict != "all":
            yield f"objective.predict: has no use for `{objective.name}`, only for `denoise`; leave it out."
        return
    if objective.predict == "all":
        return
    if objective.span_mask_rate == 0:
        yield (
            "objective.predict: `masked` counts the tokens of the masked span, and there is none; set "
            "objective.span_mask_rate (MASS: 0.5), or predict `all`."
        )
    other = [name for name in _OTHER_NOISE if getattr(objective, name) != 0]
    if other:
        yield (
            f"objective.predict: `masked` counts the tokens of the masked span only, so other noise "
            f"({', '.join(other)}) would never be undone; set it to 0, or predict `all`."
        )
