"""Each contradiction of what is done to rows has its one message."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.checks import run_problems
from pipeline.config.run import DataConfig, RunConfig
from tests.unit.config.test_checks import with_values

GOOD = RunConfig(run_directory="r", data=DataConfig(corpus="c"))
GPT = {"model__family": "gpt2", "objective__name": "clm"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective__mask_copies": 0}, "objective.mask_copies: 0 is below 1"),
        ({"objective__mask_copies": 10**30}, "is above 1000000"),
        ({"objective__mask_copies": 1, "objective__masking": "span"}, "spans are drawn for rows, and rows change"),
        (GPT | {"objective__mask_copies": 1}, "objective.mask_copies: `clm` has no masks that could be kept"),
        (
            {"model__family": "bart", "objective__name": "denoise", "objective__mask_copies": 2},
            "objective.mask_copies: `denoise` has no masks that could be kept",
        ),
        (
            GPT | {"objective__name": "distil", "objective__teacher": "t", "objective__mask_copies": 2},
            "objective.mask_copies: `distil` of family `gpt2` has no masks that could be kept",
        ),
    ],
)
def test_each_problem_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = run_problems(with_values(GOOD, **values))
    assert message in problem


@pytest.mark.parametrize(
    "values",
    [
        {"objective__mask_copies": 1},
        {"objective__mask_copies": 10, "objective__masking": "whole_word"},
        {"model__family": "electra", "objective__name": "rtd", "objective__mask_copies": 2},
        {"objective__name": "distil", "objective__teacher": "t", "objective__mask_copies": 2},
        {"objective__name": "mlm+nsp", "data__packing": "pairs_nsp", "objective__mask_copies": 2},
    ],
)
def test_what_goes_together_is_no_problem(values: dict[str, Any]) -> None:
    assert run_problems(with_values(GOOD, **values)) == []
