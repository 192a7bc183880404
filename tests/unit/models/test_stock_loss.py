"""The loss of packed rows is the one that the stock class computes itself, ``labels=`` given, of the same segments
padded to a rectangle with an ``attention_mask``: every family with every objective that its classes define a loss for,
in fp64.

Distillation is no loss of a stock class; `tests/unit/objectives/test_distil.py` has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pipeline.config.hugging_face import PADDED_FAMILIES
from pipeline.config.run import PAIR_OBJECTIVES, Family, ModelConfig, ObjectiveConfig, ObjectiveName
from pipeline.data.row_format import row_format
from pipeline.data.rows import Rows
from pipeline.data.stream import open_stream
from pipeline.models.build import build_model, hf_config
from pipeline.models.electra import ReplacedTokenModel, build_replaced_token_model, part_of, replaced_tokens
from pipeline.models.families import FAMILIES, attention_window, generator_config, model_class_name
from pipeline.objectives.batch import Batch
from pipeline.objectives.registry import make_objective, packed_loss, row_kind
from tests.corpora import Corpus, random_lengths, write_corpus
from tests.unit.objectives.padded_segments import attention_mask, pad_segments, token_types

LENGTH = 64
NUM_ROWS = 10
NUM_BATCHES = 2
SEEDS = (0, 1, 2)
EXACT, IN_FP32 = 1e-10, 1e-6


@dataclass(frozen=True)
class Case:
    """A family with an objective."""

    family: Family
    objective: ObjectiveName
    tolerance: float = EXACT
    """Relative. ``IN_FP32`` where the stock class computes its loss in fp32."""

    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the objective."""

    def __str__(self) -> str:
        return f"{self.family} {self.objective}"


CASES = (
    Case("bert", "mlm"),
    Case("bert", "mlm+nsp"),
    Case("bert", "mlm+sop"),
    Case("roberta", "mlm"),
    Case("distilbert", "mlm"),
    Case("albert", "mlm"),
    Case("albert", "mlm+nsp"),
    Case("albert", "mlm+sop"),
    Case("electra", "mlm"),
    Case(
        "electra",
        "rtd",
        IN_FP32,
        model={"generator_size": 0.5},
        settings={"mask_token_share": 1.0, "random_token_share": 0},
    ),
    # Layers 1 and 2 of 4 are local. transformers' `loss_function` begins with `logits.float()`, here and in GPT-2.
    Case("modernbert", "mlm", IN_FP32, model={"num_layers": 4, "extra": {"local_attention": 16}}),
    Case("bart", "denoise", settings={"deletion_rate": 0.05, "token_mask_rate": 0.05, "rotation": 0.2}),
    Case("gpt2", "clm", IN_FP32),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("stock") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def data_of(case: Case, corpus: Corpus, seed: int) -> tuple[Rows, Tensor, Tensor, list[Batch]]:
    """Rows, ids and labels of their tokens (R, S), and the micro-batches made of them."""
    kind = row_kind(case.objective)
    packing = PAIR_OBJECTIVES.get(case.objective, "best_fit")
    stream = open_stream(
        corpus.files,
        kind=kind,
        sequence_length=LENGTH,
        global_batch_size=NUM_ROWS,
        packing=packing,
        seed=seed,
        sentences=case.objective == "denoise",
    )
    form = row_format(corpus.manifest, kind, LENGTH)
    config = ObjectiveConfig(name=case.objective, **case.settings)
    objective = make_objective(
        config, corpus.manifest, form, seed, packing=packing, window=attention_window(shape_of(case))
    )
    rows = stream.rows(seed)
    input_ids, labels = (torch.from_numpy(array) for array in objective.labels_of(rows))
    return rows, input_ids, labels, objective.prepare(rows, NUM_BATCHES)


def shape_of(case: Case, drop_ins: bool = True) -> ModelConfig:
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 48,
        "max_positions": LENGTH,
        "hidden_dropout": 0.0,
        "initializer_range": 0.3,
        "drop_ins": drop_ins,
    }
    return ModelConfig(family=case.family, **{**settings, **case.model})


def model_of(case: Case, corpus: Corpus, seed: int, drop_ins: bool) -> Any:
    """Ours in fp64, all of whose parameters are random: initial biases are zeros, and would hide an unused one."""
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    shape = shape_of(case, drop_ins)
    if case.objective == "rtd":
        model: Any = build_replaced_token_model(shape, **facts, seed=seed)
    else:
        model = build_model(shape, **facts, seed=seed, head="pairs" if case.objective in PAIR_OBJECTIVES else "tokens")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def stock_of(name: str, shape: ModelConfig, weights: dict[str, Tensor], corpus: Corpus) -> nn.Module:
    """The class of this name as transformers makes it, with its default attention and these weights."""
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    stock: nn.Module = getattr(transformers, name)(hf_config(shape, **facts)).double().train()
    assert stock.config._attn_implementation == "sdpa"
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    assert unexpected == []
    tied = stock._tied_weights_keys or {}
    assert set(missing) <= {*tied, "final_logits_bias"}, missing
    stock.tie_weights()
    return stock


def our_loss(case: Case, model: nn.Module, batches: list[Batch]) -> tuple[Tensor, list[Tensor]]:
    """The loss and the mean of every term, over all micro-batches."""
    loss = packed_loss(ObjectiveConfig(name=case.objective, **case.settings))
    sums = [sum(of_term) for of_term in zip(*(loss.sums(model, batch) for batch in batches), strict=True)]
    means = [total / count for total, count in zip(sums, batches[0].window_counts(loss.terms), strict=True)]
    return sum(term.weight * mean for term, mean in zip(loss.terms, means, strict=True)), means  # type: ignore[return-value]


def stock_arguments(case: Case, rows: Rows, input_ids: Tensor, labels: Tensor, batches: list[Batch]) -> dict[str, Any]:
    """What the stock class with one loss is called with."""
    text = torch.from_numpy(rows.tokens.astype("int64"))
    if case.objective == "clm":  # it shifts the labels itself
        found = {"input_ids": pad_segments(rows, text, 0), "labels": pad_segments(rows, text, -100)}
    elif case.objective == "denoise":  # it shifts the labels to what the decoder reads
        noisy, lengths = noisy_segments(batches)
        return {
            "input_ids": noisy,
            "attention_mask": (torch.arange(noisy.shape[1]) < lengths[:, None]).long(),
            "labels": pad_segments(rows, text, -100),
        }
    else:
        found = {"input_ids": pad_segments(rows, input_ids, 0), "labels": pad_segments(rows, labels, -100)}
    if case.objective in PAIR_OBJECTIVES:
        assert rows.pair_label is not None
        # The stock class of BERT calls every label of a pair that of the next sentence, ALBERT's that of the order.
        name = {"bert": "next_sentence_label", "albert": "sentence_order_label"}[case.family]
        found |= {"token_type_ids": token_types(rows), name: torch.from_numpy(rows.pair_label).long()}
    return {**found, "attention_mask": attention_mask(rows)}


def noisy_segments(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """What the encoder reads of every segment, padded (N, W), and its lengths (N,)."""
    parts = []
    for batch in batches:
        assert batch.decoder_cu_seqlens is not None
        predicting = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
        predicting[batch.prediction_positions[batch.labels != -100]] = True
        for number, first in enumerate(batch.decoder_cu_seqlens[:-1].tolist()):
            begin, end = batch.cu_seqlens[number : number + 2].tolist()
            if batch.decoder_cu_seqlens[number + 1] > first and predicting[first]:
                parts.append(batch.input_ids.flatten()[begin:end])
    return nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.tensor([len(part) for part in parts])


@pytest.mark.parametrize(("seed", "drop_ins"), [*((seed, True) for seed in SEEDS), (0, False)])
@pytest.mark.parametrize("case", [case for case in CASES if case.objective != "rtd"], ids=str)
def test_loss_and_gradients_are_those_of_the_stock_class(case: Case, seed: int, drop_ins: bool, corpus: Corpus) -> None:
    rows, input_ids, labels, batches = data_of(case, corpus, seed)
    assert attention_mask(rows).sum(1).unique().numel() > 5, "nothing is padded"
    if case.family == "modernbert":
        assert (rows.segment_length > 2 * attention_window(shape_of(case))).sum() > 5, "all is within the window"
    ours = model_of(case, corpus, seed, drop_ins)
    head = "pairs" if case.objective in PAIR_OBJECTIVES else "tokens"
    stock = stock_of(model_class_name(shape_of(case), head), shape_of(case), ours.state_dict(), corpus)
    expected = stock(**stock_arguments(case, rows, input_ids, labels, batches)).loss
    found, _ = our_loss(case, ours, batches)
    assert expected.dtype == (torch.float32 if case.tolerance == IN_FP32 else torch.float64)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected.item(), rel=case.tolerance, abs=0)
    found.backward()
    expected.backward()
    assert_same_gradients(ours, dict(stock.named_parameters()), case.tolerance)


def assert_same_gradients(ours: nn.Module, stock: dict[str, nn.Parameter], tolerance: float) -> None:
    """Norm of the difference of every parameter, over the norm of all gradients."""
    own = dict(ours.named_parameters())
    assert own.keys() == stock.keys()
    norm = sum(float((parameter.grad**2).sum()) for parameter in stock.values() if parameter.grad is not None) ** 0.5
    for name, parameter in own.items():
        expected, found = (0 if one.grad is None else one.grad for one in (stock[name], parameter))
        assert float(torch.as_tensor(found - expected).norm()) <= tolerance * norm, name


@pytest.mark.parametrize("seed", SEEDS)
def test_both_losses_of_replaced_tokens_are_those_of_the_stock_classes(seed: int, corpus: Corpus) -> None:
    """The generator's; and the discriminator's, which leaves out the padding by the mask, of the tokens that the stock
    generator's logits draw."""
    (case,) = (case for case in CASES if case.objective == "rtd")
    rows, input_ids, labels, batches = data_of(case, corpus, seed)
    ours: ReplacedTokenModel = model_of(case, corpus, seed, True)
    named = dict(ours.named_parameters())
    discriminator, generator = (
        stock_of(name, shape, part_of(named, part), corpus)
        for part, name, shape in (
            ("discriminator", "ElectraForPreTraining", shape_of(case)),
            ("generator", "ElectraForMaskedLM", generator_config(shape_of(case))),
        )
    )
    ids, wanted = pad_segments(rows, input_ids, 0), pad_segments(rows, labels, -100)
    mask = attention_mask(rows)
    generated = generator(input_ids=ids, attention_mask=mask, labels=wanted)
    uniforms = torch.cat([uniforms_by_place(batch) for batch in batches])
    drawn = replaced_tokens(generated.logits.detach().flatten(0, 1), pad_segments(rows, uniforms, 0).flatten())
    text = torch.where(wanted == -100, ids, wanted)
    seen = torch.where(wanted == -100, ids, drawn.view_as(ids))
    judged = discriminator(input_ids=seen, attention_mask=mask, labels=(seen != text).long())
    assert 0.02 < (seen != text).sum() / mask.sum() < 0.15
    loss, means = our_loss(case, ours, batches)
    # The discriminator's class converts its labels to fp32, and then its loss; `test_rtd.py` has it in fp64.
    for found, expected, tolerance in zip(means, (generated.loss, judged.loss), (EXACT, IN_FP32), strict=True):
        assert expected.dtype == (torch.float32 if tolerance == IN_FP32 else torch.float64)
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(expected.item(), rel=tolerance, abs=0)
    loss.backward()
    (generated.loss + 50 * judged.loss).backward()
    of_stock = {}
    for part, stock in (("discriminator", discriminator), ("generator", generator)):
        for name, parameter in stock.named_parameters():
            key = f"discriminator.{name}" if name.startswith("electra.embeddings.") else f"{part}.{name}"
            if key in of_stock:
                of_stock[key].grad += parameter.grad  # shared
            else:
                of_stock[key] = parameter
    assert_same_gradients(ours, of_stock, IN_FP32)


def uniforms_by_place(batch: Batch) -> Tensor:
    """The numbers of the predictions at their places, (R, S)."""
    assert batch.uniforms is not None
    found = torch.zeros(batch.input_ids.shape)
    found.view(-1)[batch.prediction_positions] = batch.uniforms
    return found


def test_no_family_is_left_out() -> None:
    """Families that run padded have theirs in `test_forms.py`."""
    assert {case.family for case in CASES} == set(FAMILIES) - set(PADDED_FAMILIES)
