"""Objectives by name and what they ask of a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.config.run import Masking, ObjectiveConfig, Packing
from pipeline.objectives.clm import CausalLanguageModel
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.registry import make_objective, row_kind
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, VOCABULARY, bert_format, gpt_format


def test_kinds_and_classes() -> None:
    assert (row_kind("mlm"), row_kind("clm")) == ("bert", "gpt")
    mlm = make_objective(ObjectiveConfig(name="mlm"), VOCABULARY, bert_format(64), 1, packing="best_fit")
    clm = make_objective(ObjectiveConfig(name="clm"), VOCABULARY, gpt_format(64), 1, packing="best_fit")
    assert isinstance(mlm, MaskedLanguageModel)
    assert isinstance(clm, CausalLanguageModel)
    assert (mlm.name, clm.name) == ("mlm", "clm")
    assert mlm.capacity.predictions_per_row == 9  # 0.15 x 62
    assert clm.capacity.predictions_per_row == 64
    assert mlm.capacity.segments_per_row == 64 // 8 + 1


def test_config_reaches_the_masks() -> None:
    config = ObjectiveConfig(mask_rate=0.4, mask_token_share=0.5, random_token_share=0.25)
    mlm = make_objective(config, VOCABULARY, bert_format(64), 12, packing="best_fit")
    assert isinstance(mlm, MaskedLanguageModel)
    masking = mlm.masking
    assert (masking.config, masking.mask_id) == (config, 4)
    assert masking.special_ranges.tolist() == [[0, 4], [150, 150]]
    assert masking.ordinary_ids.tolist() == [number for number in range(200) if number not in ALL_SPECIAL_IDS]
    assert masking.keys[3] == key(12, int.from_bytes(b"PICK", "big"))


def test_padding_is_never_predicted_even_by_a_tokenizer_that_has_it_for_an_ordinary_token() -> None:
    row_format = replace(bert_format(64), pad_id=17)
    mlm = make_objective(ObjectiveConfig(), VOCABULARY, row_format, 1, packing="best_fit")
    assert isinstance(mlm, MaskedLanguageModel)
    assert mlm.masking.special_ranges.tolist() == [[0, 4], [17, 17], [150, 150]]
    assert 17 not in mlm.masking.ordinary_ids


@pytest.mark.parametrize(("masking", "needs_words"), [("token", False), ("whole_word", True), ("span", True)])
def test_words_are_asked_for_where_they_are_masked(masking: Masking, needs_words: bool) -> None:
    config = ObjectiveConfig(masking=masking)
    assert make_objective(config, VOCABULARY, bert_format(64), 1, packing="best_fit").needs_words is needs_words
    clm = make_objective(ObjectiveConfig(name="clm"), VOCABULARY, gpt_format(64), 1, packing="best_fit")
    assert not clm.needs_words


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_a_row_of_cross_document_attention_has_one_segment_and_a_tail(packing: Packing) -> None:
    made = make_objective(
        ObjectiveConfig(), VOCABULARY, bert_format(64), 1, packing=packing, cross_document_attention=True
    )
    assert made.capacity.segments_per_row == 2
    assert made.cross_document_attention


def test_masked_language_modelling_without_a_mask_token_is_refused() -> None:
    gpt2_tokenizer = SimpleNamespace(
        vocab_size=200, special_ids={**VOCABULARY.special_ids, "mask": None}, all_special_ids=[150]
    )
    with pytest.raises(UserError, match=r"objective\.name: mlm needs a mask token .* has none: .*objective\.name: clm"):
        make_objective(ObjectiveConfig(name="mlm"), gpt2_tokenizer, bert_format(64), 1, packing="best_fit")
