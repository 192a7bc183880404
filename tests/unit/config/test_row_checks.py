"""Each contradiction of what is done to rows has its one message."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.checks import run_problems
from pipeline.config.run import DataConfig, RunConfig, StageConfig
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
        (GPT | {"data__context_tokens": -1}, "data.context_tokens: -1 is below 0"),
        ({"data__context_tokens": 8}, "a meaning for next-token prediction only, and the objective is `mlm`"),
        (
            {"objective__name": "distil", "objective__teacher": "t", "data__context_tokens": 8},
            "the objective is `distil` of family `bert`",
        ),
        (
            GPT | {"data__context_tokens": 8, "data__packing": "concatenate"},
            "data.context_tokens: 8 does not go with data.packing `concatenate`; use `best_fit` or `one_document`",
        ),
        (GPT | {"data__context_tokens": 512}, "data.context_tokens: 512 leaves no room for new text in rows of 512"),
        (
            GPT
            | {
                "data__context_tokens": 127,
                "train__stages": [StageConfig(steps=9, sequence_length=128), StageConfig()],
            },
            "in rows of 128 tokens; lower it to 126 or less",
        ),
        ({"data__reverse_complement": 1.5}, "data.reverse_complement: 1.5 is outside [0, 1]"),
        ({"data__reverse_complement": float("nan")}, "data.reverse_complement: nan is outside [0, 1]"),
        (
            {"data__reverse_complement": 0.5, "data__packing": "pairs"},
            "data.reverse_complement: 0.5 does not go with data.packing pairs: the parts of a pair follow each other",
        ),
        (
            {"data__reverse_complement": 0.5, "objective__mask_copies": 1},
            "data.reverse_complement: 0.5 does not go with objective.mask_copies 1: masks that stay",
        ),
        (
            GPT | {"data__reverse_complement": 0.5, "data__context_tokens": 9},
            "data.reverse_complement: 0.5 does not go with data.context_tokens 9: the context of a piece",
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
        {"data__reverse_complement": 1.0, "objective__masking": "span"},
        GPT | {"data__reverse_complement": 0.5, "data__packing": "concatenate"},
        GPT | {"data__context_tokens": 510},
        GPT | {"data__context_tokens": 128, "data__packing": "one_document", "data__cross_document_attention": True},
        GPT | {"objective__name": "distil", "objective__teacher": "t", "data__context_tokens": 128},
        {"objective__name": "mlm+nsp", "data__packing": "pairs_nsp", "objective__mask_copies": 2},
    ],
)
def test_what_goes_together_is_no_problem(values: dict[str, Any]) -> None:
    assert run_problems(with_values(GOOD, **values)) == []
