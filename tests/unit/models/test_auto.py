"""Family `auto`: packed where a packed row gives what the stock class gives its texts alone, else padded; losses equal
those of the stock class in fp64; what cannot be trained is refused.

Letters: R rows, S slots of a row.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.errors import UserError
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.auto import family_entry
from pipeline.models.build import build_model, stock_state_dict
from pipeline.models.flops import flops_per_step, num_parameters, seq2seq_flops_per_step
from pipeline.models.hooks import family_of
from pipeline.models.packed import packed_head_loss
from pipeline.models.padded import padded_loss, padded_seq2seq_loss
from tests.unit.models.auto_cases import CASES, PACKED, PADDED, AutoCase
from tests.unit.models.packing_cases import SPECIAL_IDS, VOCAB_SIZE, PackedCase


def build(case: AutoCase, **changes: Any) -> transformers.PreTrainedModel:
    model = build_model(case.config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, head=case.head, seed=0, **changes)
    with torch.no_grad():  # biases and norms too: a term that is left out must show
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1 and not parameter.is_meta:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def stock_copy(case: AutoCase, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The stock class with the same weights, as a stranger makes it, in fp64."""
    config = type(model.config).from_dict(model.config.to_dict())
    stock = getattr(transformers, case.class_name)(config).double()
    stock.load_state_dict(stock_state_dict(model), strict=False)
    stock.tie_weights()
    return stock.train()


def same_gradients(ours: transformers.PreTrainedModel, theirs: transformers.PreTrainedModel, tolerance: float) -> None:
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    for name, parameter in ours.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            assert (parameter.grad - expected[name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("name", CASES)
def test_the_form_is_found_and_said(name: str) -> None:
    case = CASES[name]
    entry = family_entry(case.config, case.head)
    assert entry.model_class == case.class_name
    assert (entry.padded is None) == (case.padded is None)
    assert case.padded is None or case.padded in str(entry.padded)
    model = build(case, device="meta")
    assert type(model).__name__ == case.class_name
    assert family_of(model) == entry
    assert num_parameters(case.config, VOCAB_SIZE, head=case.head) == sum(p.numel() for p in model.parameters())


def test_positions_that_follow_padding_are_found() -> None:
    found = {name: family_entry(CASES[name].config, CASES[name].head) for name in PACKED}
    assert [name for name in PACKED if found[name].positions_follow_padding] == ["xlm-roberta"]
    assert [name for name in PACKED if found[name].logits_after_head] == ["cohere"]


@pytest.mark.parametrize("name", PACKED)
def test_packed_loss_and_gradients_are_those_of_the_texts_alone(name: str) -> None:
    case = CASES[name]
    rows = PackedCase([[7, 12, 5], [20], [3, 28]])
    model = build(case).double()
    stock = stock_copy(case, model)
    # Stock kernels of rotary classes raise to fp32 in eager attention only.
    positions, labels = rows.padded_predictions(60)
    loss = packed_head_loss(
        model, rows.input_ids, rows.position_ids, rows.cu_seqlens, rows.row_length, positions, labels
    )
    dense = torch.full((rows.input_ids.shape[1],), -100)
    dense[rows.predicted] = rows.labels
    expected = sum(
        cross_entropy(stock(input_ids=rows.input_ids[:, own]).logits[0], dense[own], reduction="sum")
        for own in rows.segments
    )
    assert isinstance(expected, Tensor)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    same_gradients(model, stock, 1e-5)  # rotary tables and norms of these classes are computed in fp32


def padded_rows() -> tuple[Tensor, Tensor]:
    """Three rows of one text and one of padding alone: ids (R, S), and what is real (R, S)."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, VOCAB_SIZE, (4, 16), generator=generator)
    is_real = torch.arange(16) < torch.tensor([16, 9, 12, 0])[:, None]
    return ids.where(is_real, torch.tensor(SPECIAL_IDS["pad"])), is_real


@pytest.mark.parametrize("name", PADDED)
def test_padded_loss_and_gradients_are_those_of_the_stock_class(name: str) -> None:
    """Of the same padded batch, by the class's own loss; ours has a row of padding and idle predictions beside it."""
    case = CASES[name]
    model = build(case).double()
    stock = stock_copy(case, model)
    ids, is_real = padded_rows()
    num_rows, length = ids.shape
    has_next = is_real & torch.roll(is_real, -1, 1) & (torch.arange(length) < length - 1)
    chosen = {"causal": has_next, "seq2seq": is_real}.get(case.head, is_real & (torch.arange(length) % 3 == 1))
    labels = torch.roll(ids, -1, 1) if case.head == "causal" else (ids + 1) % VOCAB_SIZE
    places = (chosen | (torch.arange(length) == 2)).flatten().nonzero().flatten()
    ignored = torch.tensor(-100)
    targets = labels.where(chosen, ignored).flatten()[places]
    mask = is_real.long()[: num_rows - 1]
    whole = {"input_ids": ids[: num_rows - 1], "attention_mask": mask}
    if case.head == "seq2seq":
        decoder = torch.roll(ids, 1, 1)
        loss = padded_seq2seq_loss(model, ids, is_real, decoder, is_real, places, targets)
        whole |= {"decoder_input_ids": decoder[: num_rows - 1], "decoder_attention_mask": mask}
    else:
        loss = padded_loss(model, ids, is_real, places, targets)
    # A causal class shifts its labels itself, and computes its own loss in fp32.
    given = (ids.where(is_real, ignored) if case.head == "causal" else labels.where(chosen, ignored))[: num_rows - 1]
    outputs = stock(**whole, labels=given)
    logits = outputs.logits.flatten(0, 1)
    expected = cross_entropy(logits, labels.where(chosen, ignored)[: num_rows - 1].flatten(), reduction="sum")
    assert outputs.loss.item() * int(chosen.sum()) == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6 if name == "gemma2" else 1e-10)
    loss.backward()
    expected.backward()
    same_gradients(model, stock, 1e-5 if name == "gemma2" else 1e-9)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "openai-gpt"])
def test_the_loss_compiles_into_one_graph(name: str) -> None:
    case = CASES[name]
    model = build(case)
    torch._dynamo.reset()
    if case.padded is None:
        rows = PackedCase([[7, 12, 5], [20]])
        positions, labels = rows.padded_predictions(30)
        inputs: tuple[Any, ...] = (rows.input_ids, rows.position_ids, rows.cu_seqlens, 32, positions, labels)
        function: Any = packed_head_loss
    else:
        ids, is_real = padded_rows()
        inputs = (ids, is_real, torch.arange(10), torch.arange(10) + 5)
        function = padded_loss
    with torch.no_grad():
        expected = function(model, *inputs)
        compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
        assert compiled(model, *inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_flops_of_a_plain_class_equal_what_torch_counts() -> None:
    """Every text alone through stock eager attention, which computes all of what a causal model needs half of."""
    case = CASES["llama"]
    model = build(case)
    model.set_attn_implementation("eager")
    lengths = [7, 12, 5]
    squares = sum(length**2 for length in lengths)
    with FlopCounterMode(display=False) as counter:
        for length in lengths:
            model(input_ids=torch.arange(length)[None] + 5).logits.sum().backward()
    expected = flops_per_step(case.config, VOCAB_SIZE, 24, squares, 24, squares, head="causal")
    attention = flops_per_step(case.config, VOCAB_SIZE, 0, squares, 0, squares, head="causal")
    assert counter.get_total_flops() == expected + attention


def test_flops_of_a_class_of_the_table_are_the_table_s() -> None:
    bert = ModelConfig(hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, max_positions=64)
    counts = (100, 900, 15, 200)
    assert flops_per_step(CASES["bert"].config, 97, *counts, head="masked") == flops_per_step(bert, 97, *counts)


def test_a_class_without_attention_has_none_in_its_flops() -> None:
    """Mamba names no heads: only the weights of its linear layers count, here of the published shape of one layer."""
    mamba = ModelConfig(family="auto", config={"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1})
    inner, state, rank = 64, 16, 2
    linear = 32 * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * 32
    assert flops_per_step(mamba, 97, 100, 900, 15, 200, head="causal") == 3 * 2 * (linear * 100 + 32 * 97 * 15)


def test_flops_of_two_sides_count_both() -> None:
    """T5's linear layers: 8 matrices of 32 x 32 a block and two of 32 x 48, of the encoder 4 and 2."""
    square, wide = 32 * 32, 2 * 32 * 48
    encoder, decoder = 2 * (4 * square + wide), 2 * (8 * square + wide)
    expected = 3 * (2 * encoder * 90 + 2 * decoder * 100 + 4 * 32 * 2 * (500 + 700 / 2 + 600) + 2 * 32 * 97 * 20)
    assert seq2seq_flops_per_step(CASES["t5"].config, 97, 100, 700, 20, 90, 500, 600) == expected


@pytest.mark.parametrize(
    ("keys", "head", "message"),
    [
        ({"model_type": "lama"}, "causal", r"transformers has no model of type 'lama'\. Did you mean `llama`"),
        ({"model_type": "llama"}, "masked", r"no AutoModelForMaskedLM of type `llama`.*it has one for `clm`"),
        ({"model_type": "vit"}, "masked", r"no AutoModelForMaskedLM of type `vit`.*it has none for text"),
        (
            {"model_type": "gemma3", "text_config": {"hidden_size": 32}},
            "causal",
            r"type `gemma3` reads more than text\. Name the config of its text model.*`text_config`.*`gemma3_text`",
        ),
        ({**CASES["llama"].keys, "hidden_size": "wide"}, "causal", r"transformers refuses it \(.*hidden_size"),
        (
            {"model_type": "xlm", "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": False},
            "causal",
            r"XLMWithLMHeadModel sees the tokens that objective `clm` predicts; set what makes it causal",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(keys: dict[str, Any], head: Head, message: str) -> None:
    with pytest.raises(UserError, match=message):
        family_entry(ModelConfig(family="auto", config=keys), head)
