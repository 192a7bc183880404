"""Packed equals unpacked: the stock class with its own attention, segment by segment, is the truth (fp64)."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import Tensor

from pipeline.config.run import Family
from pipeline.models.blocks import transformer_blocks
from pipeline.models.build import build_model, hf_config
from pipeline.models.families import FAMILIES as TABLE
from pipeline.models.hooks import prepare_packed
from pipeline.models.packed import packed_logits
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

CASES = {
    "one full row": PackedCase([[32]], cu_capacity=9),
    "padded tails": PackedCase([[7, 12, 5], [20], [1, 1, 9, 9]], seed=1),
    "full rows and padded cu_seqlens": PackedCase([[16, 16], [8, 8, 8, 8], [31, 1]], seed=2),
}


def models(family: Family, attention: str = "sdpa") -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours, and the stock class with its default attention, or another of its own, and the same weights; fp64."""
    config = tiny_config(family)
    ours = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS).double()
    stock_class = getattr(transformers, TABLE[family].model_class)
    stock_config = hf_config(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    if attention != "sdpa":
        stock_config._attn_implementation = attention
    stock = stock_class(stock_config).double().train()
    assert stock.config._attn_implementation == attention
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def stock_logits(stock: torch.nn.Module, case: PackedCase) -> Tensor:
    """(P, V): every segment as its own batch of one, nothing of ours involved."""
    logits = torch.zeros(case.input_ids.shape[1], VOCAB_SIZE, dtype=torch.float64)
    parts = [(segment, stock(case.input_ids[:, segment]).logits[0]) for segment in case.segments]
    index = torch.cat([torch.arange(segment.start, segment.stop) for segment, _ in parts])
    return logits.index_add(0, index, torch.cat([part for _, part in parts]))[case.predicted]


def loss_of(logits: Tensor, case: PackedCase) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, case.labels, reduction="sum")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_those_of_single_segments(family: Family, name: str, attention: str) -> None:
    if family == "modernbert" and attention == "eager":
        pytest.skip("its eager attention computes the softmax in fp32")
    case = CASES[name]
    ours, stock = models(family, attention)
    logits = packed_logits(ours, case.input_ids, case.position_ids, case.cu_seqlens, 32, case.predicted)
    truth = stock_logits(stock, case)
    torch.testing.assert_close(logits, truth, rtol=1e-12, atol=1e-12 * truth.abs().max().item())
    loss_of(logits, case).backward()
    loss_of(truth, case).backward()
    expected = {key: parameter.grad for key, parameter in stock.named_parameters()}
    # A key bias has gradient 0 in truth, so rounding needs a floor: a share of the largest gradient.
    floor = 1e-12 * max(gradient.abs().max().item() for gradient in expected.values() if gradient is not None)
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[key], rtol=1e-12, atol=floor, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_only_predicted_positions_reach_the_last_feed_forward_layer_and_the_decoder(family: Family) -> None:
    ours, _ = models(family)
    rows: list[int] = []
    first_of_feed_forward = {"gpt2": "mlp", "distilbert": "ffn", "albert": "albert_layers.0.ffn", "modernbert": "mlp"}
    for block in transformer_blocks(ours):
        block.get_submodule(first_of_feed_forward.get(family, "intermediate")).register_forward_pre_hook(
            lambda _, inputs: rows.append(inputs[0].shape[-2])
        )
    ours.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[-2]))
    case = CASES["padded tails"]
    positions, _ = case.padded_predictions(50)
    logits = packed_logits(ours, case.input_ids, case.position_ids, case.cu_seqlens, 32, positions)
    assert rows == [96, 50 if TABLE[family].narrow_last_block else 96, 50]
    assert logits.shape == (50, VOCAB_SIZE)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_a_copied_model_selects_its_own_rows(family: Family) -> None:
    ours, _ = models(family)
    prepare_packed(ours)  # a second call installs nothing
    twin = copy.deepcopy(ours)
    case = CASES["one full row"]
    arguments = (case.input_ids, case.position_ids, case.cu_seqlens, 32, case.predicted)
    assert torch.equal(packed_logits(twin, *arguments), packed_logits(ours, *arguments))
    assert packed_logits(twin, *arguments).shape == (len(case.predicted), VOCAB_SIZE)


@pytest.mark.parametrize("family", [family for family in FAMILIES if TABLE[family].position_table])
def test_the_longest_row_uses_the_last_position(family: Family) -> None:
    ours, _ = models(family)
    positions = next(m for key, m in ours.named_modules() if key.endswith(("position_embeddings", "wpe")))
    case = CASES["one full row"]
    packed_logits(ours, case.input_ids, case.position_ids, case.cu_seqlens, 32, torch.tensor([31])).sum().backward()
    used = positions.weight.grad.abs().sum(1) > 0
    offset = 2 if family == "roberta" else 0
    assert positions.num_embeddings == 32 + offset
    assert used.tolist() == [False] * offset + [True] * 32


def test_an_attention_mask_or_a_plain_call_is_refused() -> None:
    ours, _ = models("bert")
    case = CASES["one full row"]
    with pytest.raises(ValueError, match=r"call the model through pipeline\.models\.packed\.packed_logits"):
        ours(case.input_ids)
