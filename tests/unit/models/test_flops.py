"""Closed forms against the models themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.window import pairs_in_window
from pipeline.config.run import Family, ModelConfig
from pipeline.models.build import build_model
from pipeline.models.families import embedding_size
from pipeline.models.flops import flops_per_step, num_parameters
from pipeline.models.packed import packed_logits, packed_pair_logits
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config


def gpt2(width: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=4 * width,
        max_positions=1024,
    )


PUBLISHED = {
    # name: config, vocabulary, parameters of the published checkpoint's masked or causal language model
    "bert-base": (ModelConfig(), 30_522, 109_514_298),
    "bert-large": (
        ModelConfig(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
        30_522,
        335_174_458,
    ),
    "roberta-base": (ModelConfig(family="roberta"), 50_265, 124_697_433),
    "distilbert-base": (ModelConfig(family="distilbert", num_layers=6), 30_522, 66_985_530),
    "albert-base": (ModelConfig(family="albert"), 30_000, 11_221_680),
    "albert-xxlarge": (
        ModelConfig(family="albert", hidden_size=4096, num_layers=12, num_heads=64, intermediate_size=16384),
        30_000,
        206_368_944,
    ),
    "modernbert-base": (
        ModelConfig(family="modernbert", num_layers=22, intermediate_size=1152, max_positions=8192),
        50_368,
        149_655_232,
    ),
    "modernbert-large": (
        ModelConfig(
            family="modernbert",
            hidden_size=1024,
            num_layers=28,
            num_heads=16,
            intermediate_size=2624,
            max_positions=8192,
        ),
        50_368,
        395_881_664,
    ),
    "gpt2-small": (gpt2(768, 12, 12), 50_257, 124_439_808),
    "gpt2-medium": (gpt2(1024, 24, 16), 50_257, 354_823_168),
    "gpt2-xl": (gpt2(1600, 48, 25), 50_257, 1_557_611_200),
}


def parameters_of_the_stock_model(config: ModelConfig, vocab_size: int) -> int:
    model = build_model(config, vocab_size=vocab_size, special_ids=SPECIAL_IDS, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name: str) -> None:
    config, vocab_size, published = PUBLISHED[name]
    assert num_parameters(config, vocab_size) == published
    assert parameters_of_the_stock_model(config, vocab_size) == published


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_odd_shapes(family: Family) -> None:
    config = tiny_config(family, vocab_size=131, num_layers=3, intermediate_size=17, max_positions=45)
    assert num_parameters(config, VOCAB_SIZE) == parameters_of_the_stock_model(config, VOCAB_SIZE)


def test_token_types_from_extra_count() -> None:
    config = tiny_config("bert", extra={"type_vocab_size": 5})
    assert num_parameters(config, VOCAB_SIZE) == parameters_of_the_stock_model(config, VOCAB_SIZE)
    assert num_parameters(config, VOCAB_SIZE) == num_parameters(tiny_config("bert"), VOCAB_SIZE) + 3 * 24


PACKED_ROWS = [[32], [10, 22], [5, 7, 20]]
LENGTHS = [length for row in PACKED_ROWS for length in row]
SUM_SQUARED_LENGTHS = sum(length**2 for length in LENGTHS)
PAIRS_IN_WINDOW = sum(abs(one - other) <= 4 for n in LENGTHS for one in range(n) for other in range(n))
"""Of the tiny ModernBERT."""


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_equal_what_torch_counts(family: Family) -> None:
    """Of packed rows, forward and backward; the attention operator is counted by its registered formula."""
    config = tiny_config(family)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    case = PackedCase(PACKED_ROWS)
    with FlopCounterMode(display=False) as forward:
        logits = packed_logits(
            model, case.input_ids, case.position_ids, case.cu_seqlens, case.row_length, case.predicted
        )
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    starts = torch.tensor([segment.start for segment in case.segments])
    lengths = torch.tensor([segment.stop - segment.start for segment in case.segments])
    reached = lengths[torch.searchsorted(starts, case.predicted, right=True) - 1]
    counts = (96, SUM_SQUARED_LENGTHS, len(case.predicted), int(reached.sum()), 0, PAIRS_IN_WINDOW)
    expected = flops_per_step(config, VOCAB_SIZE, *counts)
    assert 3 * forward.get_total_flops() == expected
    assert forward.get_total_flops() + backward.get_total_flops() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_equal_what_torch_counts_for_the_stock_model(family: Family) -> None:
    """Every segment by itself through stock eager attention, every token predicted: nothing of ours is involved but the
    closed form. Eager attention computes the half that a causal model does not need, too."""
    config = tiny_config(family)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    model.set_attn_implementation("eager")
    case = PackedCase(PACKED_ROWS)
    with FlopCounterMode(display=False) as counter:
        for segment in case.segments:
            model(input_ids=case.input_ids[:, segment]).logits.sum().backward()
    attention = flops_per_step(config, VOCAB_SIZE, 0, SUM_SQUARED_LENGTHS, 0, SUM_SQUARED_LENGTHS)
    not_needed = attention if family == "gpt2" else 0
    # Eager attention computes all of a local layer, too.
    counts = (96, SUM_SQUARED_LENGTHS, 96, SUM_SQUARED_LENGTHS, 0, SUM_SQUARED_LENGTHS)
    assert counter.get_total_flops() == flops_per_step(config, VOCAB_SIZE, *counts) + not_needed


@pytest.mark.parametrize("window", [0, 1, 4, 9])
def test_pairs_in_a_window(window: int) -> None:
    for length in range(1, 20):
        near = sum(abs(one - other) <= window for one in range(length) for other in range(length))
        assert pairs_in_window(length, window) == near


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_flops_of_a_head_for_pairs(family: Family) -> None:
    """All segments are pairs, whose first tokens stand among the predicted ones."""
    config = tiny_config(family)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, head="pairs")
    case = PackedCase(PACKED_ROWS)
    starts = torch.tensor([segment.start for segment in case.segments])
    positions = torch.unique(torch.cat([case.predicted, starts]))  # ascending
    slots = torch.searchsorted(positions, starts)
    with FlopCounterMode(display=False) as counter:
        logits, of_pairs = packed_pair_logits(
            model, case.input_ids, case.position_ids, torch.zeros_like(case.input_ids), case.cu_seqlens,
            case.row_length, positions, slots,
        )  # fmt: skip
        (logits.sum() + of_pairs.sum()).backward()
    lengths = torch.tensor([segment.stop - segment.start for segment in case.segments])
    reached = int(lengths[torch.searchsorted(starts, positions, right=True) - 1].sum())
    num_predicted = len(positions) - len(starts)
    counts = (96, SUM_SQUARED_LENGTHS, num_predicted, reached, len(starts))
    # The head of the vocabulary is computed at the first tokens as well, which predict nothing.
    width = embedding_size(config)
    head = 3 * 2 * (VOCAB_SIZE * width + 24 * width)
    assert counter.get_total_flops() == flops_per_step(config, VOCAB_SIZE, *counts) + len(starts) * head


def test_attention_flops_follow_from_squared_lengths_and_are_halved_in_causal_models() -> None:
    bert, gpt = tiny_config("bert"), tiny_config("gpt2")
    # forward: QK^T and PV, 2 FLOPs each for every pair of tokens, unit of width and layer; training is three forwards.
    assert flops_per_step(bert, VOCAB_SIZE, 0, 100, 0, 100) == 3 * (2 * 2 * 100 * 24 * 2)
    assert flops_per_step(gpt, VOCAB_SIZE, 0, 100, 0, 100) == 3 * (2 * 2 * 100 * 24 * 2) / 2


def test_the_last_block_of_an_encoder_counts_at_predictions_but_for_keys_and_values() -> None:
    bert = tiny_config("bert", num_layers=1)
    key_value, others = 2 * 2 * 24 * 24, 2 * (2 * 24 * 24 + 2 * 24 * 40)
    head = 2 * (VOCAB_SIZE * 24 + 24 * 24)
    assert flops_per_step(bert, VOCAB_SIZE, 100, 0, 15, 0) == 3 * (100 * key_value + 15 * (others + head))
    assert flops_per_step(bert, VOCAB_SIZE, 0, 1000, 0, 150) == 3 * (2 * 2 * 150 * 24)


def test_bert_base_needs_about_six_flops_a_parameter_and_token() -> None:
    blocks_and_head = flops_per_step(ModelConfig(), 30_522, 1_000_000, 0, 1_000_000, 0) / 1e6
    outside_products = (512 + 2) * 768
    assert blocks_and_head == pytest.approx(6 * (109_514_298 - outside_products), rel=2e-3)


def test_closed_forms_do_not_import_torch() -> None:
    code = "import sys, pipeline.models.flops, pipeline.optim.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
