"""Objectives by name and what they ask of a tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.base.errors import UserError
from pipeline.config.run import ObjectiveConfig
from pipeline.objectives.clm import CausalLanguageModel
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.registry import make_objective, row_kind
from tests.unit.objectives.hand_made_rows import VOCABULARY, bert_format, gpt_format


def test_kinds_and_classes() -> None:
    assert (row_kind("mlm"), row_kind("clm")) == ("bert", "gpt")
    mlm = make_objective(ObjectiveConfig(name="mlm"), VOCABULARY, bert_format(64), 1, packing="best_fit")
    clm = make_objective(ObjectiveConfig(name="clm"), VOCABULARY, gpt_format(64), 1, packing="best_fit")
    assert isinstance(mlm, MaskedLanguageModel)
    assert isinstance(clm, CausalLanguageModel)
    assert (mlm.name, mlm.planner, clm.name, clm.planner) == ("mlm", "single", "clm", "single")
    assert mlm.capacity.predictions_per_row == 9  # 0.15 x 62
    assert clm.capacity.predictions_per_row == 64
    assert mlm.capacity.segments_per_row == 64 // 8 + 1


def test_config_reaches_the_masks() -> None:
    config = ObjectiveConfig(mask_rate=0.4, mask_token_share=0.5, random_token_share=0.25)
    mlm = make_objective(config, VOCABULARY, bert_format(64), 12, packing="best_fit")
    assert isinstance(mlm, MaskedLanguageModel)
    masking = mlm.masking
    assert (masking.seed, masking.rate, masking.mask_token_share, masking.random_token_share) == (12, 0.4, 0.5, 0.25)
    assert masking.mask_id == 4
    assert masking.is_special.nonzero()[0].tolist() == [0, 1, 2, 3, 4, 150]


def test_masked_language_modelling_without_a_mask_token_is_refused() -> None:
    gpt2_tokenizer = SimpleNamespace(
        vocab_size=200, special_ids={**VOCABULARY.special_ids, "mask": None}, all_special_ids=[150]
    )
    with pytest.raises(UserError, match=r"objective\.name: mlm needs a mask token .* has none: .*objective\.name: clm"):
        make_objective(ObjectiveConfig(name="mlm"), gpt2_tokenizer, bert_format(64), 1, packing="best_fit")
