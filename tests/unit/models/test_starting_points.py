"""Weights of another model as the first ones: names, blocks, positions, vocabulary, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.config.run import Family
from pipeline.config.start import StartConfig
from pipeline.models.build import build_model, hf_config, stock_state_dict
from pipeline.models.packed import packed_logits
from pipeline.models.starting_points import MEAN, Fitted, fit_weights, read_pretrained
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

START = StartConfig(from_pretrained="there")


def model_of(family: Family, seed: int = 0, vocab_size: int = VOCAB_SIZE, pairs: bool = False, **changes: Any) -> Any:
    config = tiny_config(family, **changes)
    return build_model(
        config, vocab_size=vocab_size, special_ids=SPECIAL_IDS, head="pairs" if pairs else "tokens", seed=seed
    )


def saved(model: Any, folder: Path) -> Path:
    """As a stranger saves a model: the stock class, by its own attention."""
    stock = type(model)(hf_of(model))
    stock.load_state_dict(model.state_dict())
    stock.save_pretrained(folder)
    return folder


def hf_of(model: Any) -> Any:
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = "sdpa"
    return config


def load(model: Any, fitted: Fitted) -> dict[str, Tensor]:
    model.load_state_dict(fitted.weights, strict=False)
    model.tie_weights()
    return stock_state_dict(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_to_the_bit(family: Family, tmp_path: Path) -> None:
    source = model_of(family, seed=1)
    read = read_pretrained(saved(source, tmp_path))
    model = model_of(family)
    fitted = fit_weights(read, model, START)
    assert fitted.fresh == []
    assert fitted.unused == []
    loaded = load(model, fitted)
    expected = stock_state_dict(source)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "modernbert"])
def test_a_bare_encoder_is_a_body_without_a_head(family: Family, tmp_path: Path) -> None:
    source = model_of(family, seed=1)
    bare = getattr(source, source.base_model_prefix)
    bare.config._attn_implementation = "sdpa"
    bare.save_pretrained(tmp_path)
    model = model_of(family)
    before = {name: tensor.clone() for name, tensor in stock_state_dict(model).items()}
    fitted = fit_weights(read_pretrained(tmp_path), model, START)
    prefix = f"{model.base_model_prefix}."
    assert fitted.fresh
    assert not [name for name in fitted.fresh if name.startswith(prefix)]
    loaded = load(model, fitted)
    for name, tensor in loaded.items():
        expected = before[name] if name in fitted.fresh else stock_state_dict(source)[name]
        assert torch.equal(tensor, expected), name


def test_a_model_with_more_heads_leaves_them(tmp_path: Path) -> None:
    source = model_of("bert", seed=1, pairs=True)
    fitted = fit_weights(read_pretrained(saved(source, tmp_path)), model_of("bert"), START)
    assert fitted.fresh == []
    assert sorted(fitted.unused) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    ]


def test_a_head_for_pairs_is_new_where_the_source_has_none(tmp_path: Path) -> None:
    model = model_of("bert", pairs=True)
    fitted = fit_weights(read_pretrained(saved(model_of("bert", seed=1), tmp_path)), model, START)
    assert fitted.fresh == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.seq_relationship.bias",
        "cls.seq_relationship.weight",
    ]


def test_weights_in_several_files(tmp_path: Path) -> None:
    source = model_of("bert", seed=1)
    config = hf_of(source)
    stock = type(source)(config)
    stock.load_state_dict(source.state_dict())
    stock.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    fitted = fit_weights(read_pretrained(tmp_path), model_of("bert"), START)
    assert all(torch.equal(fitted.weights[name], tensor) for name, tensor in stock_state_dict(source).items())


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "modernbert"])
def test_stacking_repeats_the_blocks(family: Family, tmp_path: Path) -> None:
    layers = {"extra": {"local_attention": 8, "layer_types": ["full_attention"] * 4}} if family == "modernbert" else {}
    below = {"extra": {"local_attention": 8, "layer_types": ["full_attention"] * 2}} if family == "modernbert" else {}
    source = model_of(family, seed=1, **below)
    deep = model_of(family, num_layers=4, **layers)
    read = read_pretrained(saved(source, tmp_path))
    if family == "modernbert":  # its first block has no norm of its own
        read.config["layer_types"] = None  # type: ignore[index]
        with pytest.raises(UserError, match=r"missing there: model\.layers\.2\.attn_norm\.weight"):
            fit_weights(read, deep, StartConfig(from_pretrained="there", stack=2))
        return
    fitted = fit_weights(read, deep, StartConfig(from_pretrained="there", stack=2))
    assert fitted.fresh == []
    given = stock_state_dict(source)
    for name, tensor in fitted.weights.items():
        below_name = name
        for upper, lower in ((2, 0), (3, 1)):
            below_name = below_name.replace(f"layer.{upper}.", f"layer.{lower}.").replace(f"h.{upper}.", f"h.{lower}.")
        assert torch.equal(tensor, given[below_name]), name


def test_stacking_must_come_out_even(tmp_path: Path) -> None:
    read = read_pretrained(saved(model_of("bert", seed=1), tmp_path))
    wanted = r"start\.stack: of the 2 blocks of .* it makes 4, and this model has 3 .*set that to 4"
    with pytest.raises(UserError, match=wanted):
        fit_weights(read, model_of("bert", num_layers=3), StartConfig(from_pretrained="there", stack=2))


def test_every_second_block_of_bert_makes_a_distilbert(tmp_path: Path) -> None:
    """With the layers' own modules: the student computes what the teacher does, one block left out."""
    teacher = model_of("bert", seed=1, num_layers=3)
    student = model_of("distilbert")
    start = StartConfig(from_pretrained="there", every_block=2)
    fitted = fit_weights(read_pretrained(saved(teacher, tmp_path)), student, start)
    assert fitted.fresh == []
    left_out = ("bert.encoder.layer.1.", "bert.embeddings.token_type_embeddings.")
    assert fitted.unused == sorted(name for name in stock_state_dict(teacher) if name.startswith(left_out))
    load(student, fitted)
    with torch.no_grad():
        teacher.bert.embeddings.token_type_embeddings.weight.zero_()
    del teacher.bert.encoder.layer[1]
    case = PackedCase([[20, 12], [7, 9]])
    arguments = (case.input_ids, case.position_ids, case.cu_seqlens, 32, case.predicted)
    with torch.no_grad():
        expected, found = packed_logits(teacher, *arguments), packed_logits(student, *arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("how", ["tile", "interpolate"])
def test_longer_positions(family: Family, how: Any, tmp_path: Path) -> None:
    source, model = model_of(family, seed=1), model_of(family, max_positions=80)
    before = 2 if family == "roberta" else 0
    start = StartConfig(from_pretrained="there", longer_positions=how)
    fitted = fit_weights(read_pretrained(saved(source, tmp_path)), model, start, positions_before=before)
    (name,) = (name for name in fitted.weights if name.endswith(("position_embeddings.weight", "wpe.weight")))
    old, new = stock_state_dict(source)[name], fitted.weights[name]
    assert len(new) == 80 + before
    assert torch.equal(new[:before], old[:before])
    old, new = old[before:], new[before:]
    if how == "tile":
        assert torch.equal(new, torch.cat([old, old, old[:16]]))
    else:
        torch.testing.assert_close(new[[0, -1]], old[[0, -1]])
        place = 40 * 31 / 79
        between = torch.lerp(old[int(place)], old[int(place) + 1], place - int(place))
        torch.testing.assert_close(new[40], between)


def test_more_positions_are_refused_unless_asked_for(tmp_path: Path) -> None:
    read = read_pretrained(saved(model_of("bert", seed=1), tmp_path))
    wanted = r"position_embeddings\.weight is \(32, 24\) there, \(80, 24\) here.*`start\.longer_positions` longer"
    with pytest.raises(UserError, match=wanted):
        fit_weights(read, model_of("bert", max_positions=80), START)


def test_rows_of_the_vocabulary(tmp_path: Path) -> None:
    """Embedding and output bias alike, whose rows the mean is of."""
    source = model_of("bert", seed=1)
    with torch.no_grad():
        source.cls.predictions.bias.copy_(torch.arange(VOCAB_SIZE))
    rows = torch.tensor([5, 4, MEAN, *range(10), MEAN])
    model = model_of("bert", vocab_size=len(rows))
    fitted = fit_weights(read_pretrained(saved(source, tmp_path)), model, START, rows)
    embedding = stock_state_dict(source)["bert.embeddings.word_embeddings.weight"]
    for name, old in (
        ("bert.embeddings.word_embeddings.weight", embedding),
        ("cls.predictions.bias", torch.arange(VOCAB_SIZE, dtype=torch.float32)),
    ):
        new = fitted.weights[name]
        assert torch.equal(new[:2], old[[5, 4]])
        assert torch.equal(new[3:13], old[:10])
        torch.testing.assert_close(new[2], old.mean(0))
        torch.testing.assert_close(new[13], old.mean(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48, "num_heads": 3}, r"word_embeddings\.weight is \(97, 24\) there, \(97, 48\) here"),
        ({"num_heads": 2}, r"num_attention_heads: 3 there, 2 here"),
        ({"intermediate_size": 44}, r"intermediate\.dense\.weight is \(40, 24\) there, \(44, 24\) here"),
        ({"num_layers": 3}, r"missing there: bert\.encoder\.layer\.2\."),
        ({"extra": {"hidden_act": "relu"}}, r"hidden_act: 'gelu' there, 'relu' here"),
        ({"vocab_size": 100}, r"word_embeddings\.weight is \(97, 24\) there, \(100, 24\) here"),
    ],
)
def test_another_shape_is_refused_with_the_difference(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    read = read_pretrained(saved(model_of("bert", seed=1), tmp_path))
    with pytest.raises(UserError, match=message):
        fit_weights(read, model_of("bert", **changes), START)


def test_another_family_is_refused(tmp_path: Path) -> None:
    read = read_pretrained(saved(model_of("roberta", seed=1), tmp_path))
    with pytest.raises(UserError, match=r"a model of type 'roberta', this run's is 'bert' \(model\.family\)"):
        fit_weights(read, model_of("bert"), START)


def test_what_is_no_folder_of_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Hugging Face model with safetensors: config\.json is missing"):
        read_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors is missing\. Weights in other formats can run code"):
        read_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345678 no tensors")
    with pytest.raises(UserError, match="is damaged"):
        read_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(UserError, match=r"names a file outside of it \(\.\./a\.safetensors\)"):
        read_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_pretrained(tmp_path)


def test_names_that_are_no_model_of_the_family(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"missing there: bert\.embeddings"):
        fit_weights(read_pretrained(tmp_path), model_of("bert"), START)


def test_stock_classes_are_what_is_tested(tmp_path: Path) -> None:
    """The folders above are those that `from_pretrained` of transformers reads, too."""
    folder = saved(model_of("bert", seed=1), tmp_path)
    stock, info = transformers.BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    fitted = fit_weights(read_pretrained(folder), model_of("bert"), START)
    assert all(torch.equal(stock.state_dict()[name], tensor) for name, tensor in fitted.weights.items())
    assert stock.config.to_dict().keys() >= hf_config(
        tiny_config("bert"), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS
    ).to_diff_dict().keys() - {"transformers_version"}
