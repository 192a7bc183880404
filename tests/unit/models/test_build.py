"""Models from configs: weights, Hugging Face configs, exports, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pipeline.base.errors import UserError
from pipeline.config.run import Family
from pipeline.models.build import build_model, hf_config, stock_state_dict
from pipeline.models.families import FAMILIES as TABLE
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, tiny_config


def build(family: Family, seed: int | None = 0, **changes: Any) -> transformers.PreTrainedModel:
    return build_model(tiny_config(family, **changes), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_is_the_stock_one_in_training_mode(family: Family) -> None:
    model = build(family)
    assert type(model) is getattr(transformers, TABLE[family].model_class)
    assert model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_the_seed_and_leave_the_generator_alone(family: Family) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first, again, other = build(family, 1), build(family, 1), build(family, 2)
    assert torch.equal(torch.get_rng_state(), state)
    names = [name for name, parameter in first.named_parameters() if parameter.ndim > 1]
    assert all(torch.equal(first.get_parameter(name), again.get_parameter(name)) for name in names)
    assert not any(torch.equal(first.get_parameter(name), other.get_parameter(name)) for name in names)


def test_without_a_seed_weights_come_from_the_generator() -> None:
    torch.manual_seed(7)
    first = build("bert", None)
    torch.manual_seed(7)
    again = build("bert", None)
    assert torch.equal(first.get_input_embeddings().weight, again.get_input_embeddings().weight)
    assert not torch.equal(first.get_input_embeddings().weight, build("bert", None).get_input_embeddings().weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_have_the_standard_deviation_asked_for(family: Family) -> None:
    model = build(family, hidden_size=192, intermediate_size=768, initializer_range=0.05)
    feed_forward = {
        "gpt2": "transformer.h.0.mlp.c_fc.weight",
        "distilbert": "distilbert.transformer.layer.0.ffn.lin1.weight",
        "albert": "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
        "modernbert": "model.layers.0.mlp.Wi.weight",
    }.get(family, f"{family}.encoder.layer.0.intermediate.dense.weight")
    weight = model.get_parameter(feed_forward)  # 147,456 draws: the estimate is good to 0.2 %
    cut = 0.8796 if family == "modernbert" else 1.0  # normal, cut at two standard deviations
    assert weight.std().item() == pytest.approx(0.05 * cut, rel=0.01)
    assert abs(weight.mean().item()) < 5 * 0.05 / weight.numel() ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_config_reaches_the_modules(family: Family) -> None:
    model = build(family, hidden_dropout=0.25, attention_dropout=0.125, num_layers=3, intermediate_size=56)
    rates = sorted({module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)})
    assert rates == [0.125, 0.25]
    assert model.config.num_hidden_layers == 3
    assert any(56 in parameter.shape for parameter in model.parameters())


def test_published_shapes_beyond_the_common_fields() -> None:
    bert, roberta, distilbert, albert, _, modernbert, gpt2 = (
        hf_config(tiny_config(family), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS) for family in FAMILIES
    )
    assert (bert.type_vocab_size, bert.layer_norm_eps, bert.hidden_act) == (2, 1e-12, "gelu")
    assert (roberta.type_vocab_size, roberta.layer_norm_eps, roberta.hidden_act) == (1, 1e-5, "gelu")
    assert (gpt2.layer_norm_epsilon, gpt2.activation_function) == (1e-5, "gelu_new")
    assert (bert.max_position_embeddings, roberta.max_position_embeddings, gpt2.n_positions) == (32, 34, 32)
    assert (bert.pad_token_id, roberta.pad_token_id, gpt2.pad_token_id) == (1, 1, None)
    assert (roberta.bos_token_id, roberta.eos_token_id, gpt2.bos_token_id, gpt2.eos_token_id) == (0, 2, 0, 2)
    assert (distilbert.sinusoidal_pos_embds, distilbert.activation, distilbert.max_position_embeddings) == (
        False,
        "gelu",
        32,
    )
    assert (albert.embedding_size, albert.num_hidden_groups, albert.inner_group_num, albert.hidden_act) == (
        128,
        1,
        1,
        "gelu_new",
    )
    assert modernbert.layer_types == ["full_attention", "sliding_attention"]
    assert (modernbert.local_attention, modernbert.norm_eps, modernbert.cls_token_id) == (8, 1e-5, 0)
    assert all(config.vocab_size == VOCAB_SIZE for config in (bert, roberta, distilbert, albert, modernbert, gpt2))


def test_roberta_has_its_positions_after_whatever_the_padding_id_is() -> None:
    config = hf_config(tiny_config("roberta"), vocab_size=VOCAB_SIZE, special_ids={**SPECIAL_IDS, "pad": 0})
    assert config.max_position_embeddings == 33


def test_gpt2_begins_with_its_end_of_text_where_there_is_no_other_token() -> None:
    only_eos = dict.fromkeys(SPECIAL_IDS) | {"eos": 6}
    config = hf_config(tiny_config("gpt2"), vocab_size=VOCAB_SIZE, special_ids=only_eos)
    assert (config.bos_token_id, config.eos_token_id) == (6, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_knows_nothing_of_us_and_has_the_same_weights(family: Family, tmp_path: Path) -> None:
    model = build(family).eval()
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "pretrain" not in text
    assert json.loads(text)["architectures"] == [TABLE[family].model_class]
    auto = transformers.AutoModelForCausalLM if family == "gpt2" else transformers.AutoModelForMaskedLM
    loaded = auto.from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_is_what_save_pretrained_writes(family: Family, tmp_path: Path) -> None:
    model = build(family)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    ours = stock_state_dict(model)
    assert sorted(ours) == sorted(written)
    assert all(torch.equal(ours[name], written[name]) for name in ours)
    assert not any(tensor.requires_grad for tensor in ours.values())
    gathered = {name: torch.full_like(tensor, 3.0) for name, tensor in model.state_dict().items()}
    assert all(tensor.eq(3.0).all() for tensor in stock_state_dict(model, gathered).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_tied_and_bert_has_no_pooler(family: Family) -> None:
    model = build(family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not any("pooler" in name for name, _ in model.named_modules())


def test_more_rows_than_ids_are_allowed_and_fewer_refused() -> None:
    assert build("bert", vocab_size=128).get_input_embeddings().num_embeddings == 128
    with pytest.raises(
        UserError, match=r"model\.vocab_size: 90 is smaller than the tokenizer .* which has 97 ids: set it to 97"
    ):
        build("bert", vocab_size=90)


def test_extra_reaches_the_config_and_wins_over_family_defaults() -> None:
    model = build("roberta", extra={"hidden_act": "relu", "layer_norm_eps": 1e-6, "type_vocab_size": 3})
    assert (model.config.hidden_act, model.config.layer_norm_eps, model.config.type_vocab_size) == ("relu", 1e-6, 3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"hiden_act": "relu"}, r"model\.extra\.hiden_act: BertConfig has no such key; did you mean `hidden_act`\?"),
        ({"zzzzzz": 1}, r"model\.extra\.zzzzzz: BertConfig has no such key\. Correct the name or remove it\."),
        ({"_attn_implementation": "sdpa"}, r"model\.extra\._attn_implementation: BertConfig has no such key"),
        ({"is_decoder": True}, r"model\.extra\.is_decoder: cannot be changed here: choose the family instead"),
        ({"tie_word_embeddings": False}, r"model\.extra\.tie_word_embeddings: cannot be changed here: the head shares"),
        ({"pad_token_id": 3}, r"model\.extra\.pad_token_id: cannot be changed here: special tokens come from the tok"),
        ({"return_dict": False}, r"model\.extra\.return_dict: cannot be changed here: the packed forward reads"),
        (
            {"hidden_act": "geluu"},
            r"model\.extra\.hidden_act: transformers has no activation `geluu`; it has .*gelu",
        ),
        ({"hidden_act": 5}, r"model\.extra\.hidden_act: 5 is a int; it must be a str, as the default 'gelu'"),
        (
            {"layer_norm_eps": "x"},
            r"model\.extra\.layer_norm_eps: 'x' is a str; it must be a float, as the default",
        ),
    ],
)
def test_what_extra_cannot_say_is_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("bert", extra=extra)


@pytest.mark.parametrize(("family", "missing"), [("bert", "pad"), ("roberta", "bos or cls"), ("gpt2", "bos or eos")])
def test_a_tokenizer_without_the_tokens_of_the_family_is_refused(family: Family, missing: str) -> None:
    special_ids = dict.fromkeys(SPECIAL_IDS) | ({"pad": 1} if family == "roberta" else {})
    with pytest.raises(UserError, match=rf"model\.family: {family} needs a {missing} token and the tokenizer"):
        build_model(tiny_config(family), vocab_size=VOCAB_SIZE, special_ids=special_ids)
