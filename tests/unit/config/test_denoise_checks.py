"""Each contradiction around the masked span of `denoise` has its message."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.checks import run_problems
from pipeline.config.run import DataConfig, ModelConfig, RunConfig, RunObjectiveConfig

ONLY_SPAN = {"span_mask_rate": 0.5, "infilling_rate": 0.0, "permute_sentences": 0.0}


def problems_of(family: Any = "bart", **values: Any) -> list[str]:
    objective = RunObjectiveConfig(**{"name": "denoise", **values})
    return run_problems(RunConfig("r", model=ModelConfig(family=family), data=DataConfig("c"), objective=objective))


@pytest.mark.parametrize("values", [{}, {**ONLY_SPAN, "predict": "masked"}, ONLY_SPAN, {"span_mask_rate": 0.3}])
def test_good_noise_has_no_problem(values: dict[str, Any]) -> None:
    assert problems_of(**values) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"span_mask_rate": 1.5}, "objective.span_mask_rate: 1.5 is outside [0, 1]"),
        ({**ONLY_SPAN, "span_mask_rate": 0.0, "deletion_rate": 0.0}, "without any noise the text is copied"),
        (
            {**ONLY_SPAN, "predict": "masked", "rotation": 0.1, "infilling_rate": 0.3},
            "the masked span only, so other noise (infilling_rate, rotation) would never be undone; set it to 0",
        ),
        ({"name": "mlm", "family": "bert", "span_mask_rate": 0.5}, "objective.span_mask_rate: has no use for `mlm`"),
        ({"name": "mlm", "family": "bert", "predict": "masked"}, "objective.predict: has no use for `mlm`"),
    ],
)
def test_each_problem_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(**values)
    assert message in problem


def test_a_span_that_is_not_masked_cannot_be_predicted() -> None:
    problems = problems_of(predict="masked", permute_sentences=0.0)
    assert any("there is none; set objective.span_mask_rate (MASS: 0.5), or predict `all`" in one for one in problems)
