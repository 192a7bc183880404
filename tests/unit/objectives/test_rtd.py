"""Replaced-token detection: what is drawn, what the discriminator sees, and the loss against the stock classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipeline.config.run import ModelConfig, ObjectiveConfig
from pipeline.data.row_format import row_format
from pipeline.data.rows import Rows
from pipeline.data.stream import open_stream
from pipeline.models.build import hf_config
from pipeline.models.electra import (
    ReplacedTokenModel,
    build_replaced_token_model,
    num_replaced_token_parameters,
    part_of,
    replaced_token_flops,
    replaced_tokens,
)
from pipeline.models.families import generator_config
from pipeline.objectives import rtd
from pipeline.objectives.layout import real_slots
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective, packed_loss
from tests.corpora import Corpus, random_lengths, write_corpus

LENGTH = 64
CONFIG = ObjectiveConfig(name="rtd", mask_token_share=1.0, random_token_share=0.0)
SHAPE = ModelConfig(
    family="electra",
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_positions=LENGTH,
    hidden_dropout=0.0,
    initializer_range=0.3,
    generator_size=0.5,
    extra={"embedding_size": 24},
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("rtd") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def rows_and_objective(corpus: Corpus, step: int = 0) -> tuple[Rows, Objective]:
    stream = open_stream(corpus.files, kind="bert", sequence_length=LENGTH, global_batch_size=8, seed=1)
    form = row_format(corpus.manifest, "bert", LENGTH)
    return stream.rows(step), make_objective(CONFIG, corpus.manifest, form, 3, packing="best_fit")


def model_of(corpus: Corpus, shape: ModelConfig = SHAPE) -> ReplacedTokenModel:
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    return build_replaced_token_model(shape, **facts, seed=0).double()


def stock_models(model: ReplacedTokenModel, corpus: Corpus) -> tuple[Any, Any]:
    """Discriminator and generator as stock classes of their own, with the same weights; they share nothing."""
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    found = []
    for part, name, shape in (
        ("discriminator", "ElectraForPreTraining", SHAPE),
        ("generator", "ElectraForMaskedLM", generator_config(SHAPE)),
    ):
        stock = getattr(transformers, name)(hf_config(shape, **facts)).double().train()
        missing, unexpected = stock.load_state_dict(part_of(dict(model.named_parameters()), part), strict=False)
        assert unexpected == []
        assert set(missing) <= {"generator_lm_head.weight"}
        stock.tie_weights()
        found.append(stock)
    return found[0], found[1]


def test_drawing_follows_the_distribution() -> None:
    """By the inverse of the distribution function: evenly spaced numbers draw every token as often as it is likely."""
    logits = torch.tensor([0.0, 2.0, -1.0, float("-inf"), 1.0], dtype=torch.float64).log_softmax(-1)
    uniforms = (torch.arange(100_000) + 0.5) / 100_000
    drawn = replaced_tokens(logits.expand(len(uniforms), -1), uniforms)
    shares = torch.bincount(drawn, minlength=5) / len(uniforms)
    torch.testing.assert_close(shares.double(), logits.exp(), atol=2e-5, rtol=0)
    assert int(replaced_tokens(logits[None], torch.tensor([0.0]))) == 0
    assert int(replaced_tokens(logits[None], torch.tensor([1 - 2**-24]))) == 4


def test_numbers_depend_on_row_and_place_alone(corpus: Corpus) -> None:
    rows, objective = rows_and_objective(corpus)
    by_place = []
    for num_batches in (1, 4):
        found = {}
        for batch in objective.prepare(rows, num_batches):
            assert batch.uniforms is not None
            for position, uniform in zip(batch.prediction_positions.tolist(), batch.uniforms.tolist(), strict=True):
                row, place = divmod(position, LENGTH)
                found[int(batch.row_numbers[row]), place] = uniform
        by_place.append(found)
    common = by_place[0].keys() & by_place[1].keys()
    assert len(common) > 50
    assert all(by_place[0][place] == by_place[1][place] for place in common)
    values = np.array(list(by_place[0].values()))
    assert 0 <= values.min() < 0.1
    assert 0.9 < values.max() < 1
    assert len(set(values)) > 0.99 * len(values)


def test_real_slots_are_those_of_segments(corpus: Corpus) -> None:
    rows, objective = rows_and_objective(corpus)
    expected = np.zeros(rows.tokens.shape, bool)
    for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
        expected[row, start : start + length] = True
    np.testing.assert_array_equal(real_slots(rows), expected)
    batches = objective.prepare(rows, 2)
    assert sum(batch.num_real_tokens for batch in batches) == batches[0].window_real_tokens == expected.sum()
    assert torch.equal(torch.cat([batch.is_real for batch in batches]), torch.from_numpy(expected))  # type: ignore[arg-type]


def test_no_mask_reaches_the_discriminator(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it sees differs from the text at predicted positions only."""
    seen: list[Tensor] = []
    judge = rtd.discriminator_logits

    def watched(model: Any, ids: Tensor, *more: Any) -> Tensor:
        seen.append(ids)
        return judge(model, ids, *more)

    monkeypatch.setattr(rtd, "discriminator_logits", watched)
    rows, objective = rows_and_objective(corpus)
    (batch,) = objective.prepare(rows, 1)
    packed_loss(CONFIG).sums(model_of(corpus), batch)
    text = torch.from_numpy(rows.tokens.astype(np.int64)).flatten()
    predicted = batch.prediction_positions[batch.labels != -100]
    elsewhere = torch.ones(len(text), dtype=torch.bool)
    elsewhere[predicted] = False
    (ids,) = seen
    assert (batch.input_ids.flatten()[predicted] == corpus.manifest.special_ids["mask"]).all()
    assert torch.equal(ids[0][elsewhere], text[elsewhere])
    drawn_mask = (ids[0][predicted] == corpus.manifest.special_ids["mask"]).double().mean()
    assert drawn_mask < 0.1  # but for those that the generator draws
    assert (ids[0][predicted] != text[predicted]).double().mean() > 0.5


def test_equals_the_stock_classes(corpus: Corpus) -> None:
    """Segment by segment through both stock classes, with the same drawn tokens; gradients of shared weights added."""
    rows, objective = rows_and_objective(corpus)
    (batch,) = objective.prepare(rows, 1)
    ours = model_of(corpus)
    discriminator, generator = stock_models(ours, corpus)
    input_ids, labels = (torch.from_numpy(array) for array in objective.labels_of(rows))
    assert batch.uniforms is not None
    numbers = dict(zip(batch.prediction_positions.tolist(), batch.uniforms.tolist(), strict=True))
    expected = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for row, start, length in zip(
        rows.segment_row.tolist(), rows.segment_start.tolist(), rows.segment_length.tolist(), strict=True
    ):
        segment = slice(start, start + length)
        own = labels[row, segment]
        logits = generator(input_ids[row, segment][None]).logits[0]
        expected[0] = expected[0] + cross_entropy(logits, own, reduction="sum")
        text = torch.where(own != -100, own, input_ids[row, segment])
        ids = text.clone()
        for place in torch.nonzero(own != -100).flatten().tolist():
            number = torch.tensor([numbers[row * LENGTH + start + place]])
            ids[place] = replaced_tokens(logits[place].detach()[None], number)[0]
        scores = discriminator(ids[None]).logits[0]
        expected[1] = expected[1] + binary_cross_entropy_with_logits(scores, (ids != text).double(), reduction="sum")
    loss = packed_loss(CONFIG)
    found = loss.sums(ours, batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=0)
    (found[0] + 50 * found[1]).backward()
    (expected[0] + 50 * expected[1]).backward()
    of_stock: dict[str, Tensor] = {}
    for part, stock in (("discriminator", discriminator), ("generator", generator)):
        for name, parameter in stock.named_parameters():
            shared = name.startswith("electra.embeddings.")
            key = f"discriminator.{name}" if shared else f"{part}.{name}"
            of_stock[key] = parameter.grad + of_stock.get(key, 0)
    largest = max(float(gradient.abs().max()) for gradient in of_stock.values())
    ours_by_name = dict(ours.named_parameters())
    assert ours_by_name.keys() == of_stock.keys()
    for name, parameter in ours_by_name.items():
        torch.testing.assert_close(parameter.grad, of_stock[name], rtol=1e-8, atol=1e-11 * largest, msg=name)


@pytest.mark.parametrize("size", [24, 32])
def test_parameters_and_flops(size: int, corpus: Corpus) -> None:
    """With embeddings of the model's width, and narrower ones, which a layer widens."""
    shape = ModelConfig(**{**vars(SHAPE), "extra": {"embedding_size": size}})
    model = model_of(corpus, shape)
    vocab_size = corpus.manifest.vocab_size
    assert num_replaced_token_parameters(shape, vocab_size) == sum(p.numel() for p in model.parameters())
    assert replaced_token_flops(shape, vocab_size, 0, 0, 0, 0) == 0
    assert replaced_token_flops(shape, vocab_size, 100, 1000, 15, 150) > 0


def test_the_step_compiles_into_one_graph(corpus: Corpus) -> None:
    loss = packed_loss(CONFIG)
    ours = model_of(corpus)
    compiled = torch.compile(loss.function, fullgraph=True, dynamic=False, backend="aot_eager")
    rows, objective = rows_and_objective(corpus)
    for batch in objective.prepare(rows, 2):
        tensors = [getattr(batch, name) for name in loss.tensors]
        for found, expected in zip(compiled(ours, *tensors, batch.max_seqlen), loss.sums(ours, batch), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_weight_of_the_discriminator_is_a_setting() -> None:
    terms = packed_loss(ObjectiveConfig(name="rtd", discriminator_weight=7.0)).terms
    assert [(term.name, term.weight) for term in terms] == [("mlm", 1.0), ("rtd", 7.0)]
