"""Sentence pairs in batches, and the loss of masked tokens and pairs against the stock classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from pipeline.config.run import PAIR_OBJECTIVES, Family, ModelConfig, ObjectiveConfig, ObjectiveName
from pipeline.data.row_format import row_format
from pipeline.data.rows import NO_PAIR, Rows
from pipeline.data.stream import open_stream
from pipeline.models.build import build_model, hf_config
from pipeline.models.families import FAMILIES, model_class_name
from pipeline.objectives.batch import Batch
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective, packed_loss
from tests.corpora import Corpus, random_lengths, write_corpus
from tests.unit.objectives.padded_segments import attention_mask, pad_segments, token_types

LENGTH = 64
NUM_ROWS = 12
OBJECTIVES: tuple[ObjectiveName, ...] = ("mlm+nsp", "mlm+sop")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("pairs") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def rows_and_objective(corpus: Corpus, name: ObjectiveName, step: int = 0, **settings: Any) -> tuple[Rows, Objective]:
    packing = PAIR_OBJECTIVES.get(name, "pairs_nsp")
    stream = open_stream(
        corpus.files, kind="bert", sequence_length=LENGTH, global_batch_size=NUM_ROWS, packing=packing, seed=1
    )
    form = row_format(corpus.manifest, "bert", LENGTH)
    objective = make_objective(ObjectiveConfig(name=name, **settings), corpus.manifest, form, 3, packing=packing)
    return stream.rows(step), objective


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("num_batches", [1, 4])
def test_a_batch_says_where_pairs_begin_and_what_they_are(
    corpus: Corpus, name: ObjectiveName, num_batches: int
) -> None:
    rows, objective = rows_and_objective(corpus, name)
    batches = objective.prepare(rows, num_batches)
    assert rows.pair_label is not None
    assert rows.second_start is not None
    found = {}
    for number, batch in enumerate(batches):
        assert batch.pair_slots is not None
        assert batch.pair_labels is not None
        assert batch.token_type_ids is not None
        assert len(batch.pair_slots) == len(batch.pair_labels) == len(batch.cu_seqlens) - 1
        assert (batch.pair_slots.diff() > 0).all()
        assert batch.num_pairs == int((batch.pair_labels != NO_PAIR).sum())
        for slot, label in zip(batch.prediction_positions[batch.pair_slots].tolist(), batch.pair_labels, strict=True):
            if label != NO_PAIR:
                row, start = divmod(slot, LENGTH)
                found[number * len(batch.row_numbers) + row, start] = int(label)
    segments = zip(rows.segment_row.tolist(), rows.segment_start.tolist(), rows.pair_label.tolist(), strict=True)
    assert found == {(row, start): label for row, start, label in segments if label != NO_PAIR}
    assert set(found.values()) == {0, 1}
    assert {batch.window_pairs for batch in batches} == {len(found)}
    types = torch.cat([batch.token_type_ids for batch in batches if batch.token_type_ids is not None]).numpy()
    expected = np.zeros((NUM_ROWS, LENGTH))
    for row, start, end in zip(
        rows.segment_row, rows.second_start, rows.segment_start + rows.segment_length, strict=True
    ):
        expected[row, start:end] = 1
    np.testing.assert_array_equal(types, expected)


@pytest.mark.parametrize("settings", [{"mask_copies": 1, "mask_rate": 0.6}, {"mask_rate": 0.95}])
def test_places_for_predictions_and_pairs_are_no_more_than_tokens(corpus: Corpus, settings: dict[str, Any]) -> None:
    rows, objective = rows_and_objective(corpus, "mlm+nsp", **settings)
    for batch in objective.prepare(rows, 4):
        assert len(batch.prediction_positions) == batch.input_ids.numel()
        assert torch.equal(batch.prediction_positions, torch.arange(batch.input_ids.numel()))
        assert int((batch.labels != -100).sum()) == batch.num_predictions
        assert batch.pair_labels is not None
        assert int((batch.pair_labels != NO_PAIR).sum()) == batch.num_pairs


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tokens_are_predicted_as_without_pairs(corpus: Corpus, name: ObjectiveName) -> None:
    rows, objective = rows_and_objective(corpus, name)
    alone = make_objective(
        ObjectiveConfig(), corpus.manifest, row_format(corpus.manifest, "bert", LENGTH), 3, packing="pairs_nsp"
    )
    for with_pairs, without in zip(objective.prepare(rows, 3), alone.prepare(rows, 3), strict=True):
        assert torch.equal(with_pairs.input_ids, without.input_ids)
        assert with_pairs.num_predictions == without.num_predictions
        for batch in (with_pairs, without):
            assert (batch.prediction_positions.diff() > 0).all()
        assert predicted(with_pairs) == predicted(without)


def predicted(batch: Batch) -> dict[int, int]:
    pairs = zip(batch.prediction_positions.tolist(), batch.labels.tolist(), strict=True)
    return {position: label for position, label in pairs if label != NO_PAIR}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shapes_are_those_of_every_batch(corpus: Corpus, name: ObjectiveName) -> None:
    shapes = []
    for step in range(4):
        rows, objective = rows_and_objective(corpus, name, step)
        shapes += [
            {name: value.shape for name, value in vars(batch).items() if isinstance(value, Tensor)}
            for batch in objective.prepare(rows, 2)
        ]
    assert all(shape == shapes[0] for shape in shapes)


def models(family: Family, drop_ins: bool, corpus: Corpus) -> tuple[Any, Any]:
    """Ours and the stock one with the same weights, fp64."""
    config = ModelConfig(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=LENGTH,
        hidden_dropout=0.0,
        initializer_range=0.3,
        drop_ins=drop_ins,
    )
    facts: dict[str, Any] = {
        "vocab_size": corpus.manifest.vocab_size,
        "special_ids": corpus.manifest.special_ids,
        "head": "pairs",
    }
    ours = build_model(config, **facts, seed=0).double()
    stock = getattr(transformers, model_class_name(config, "pairs"))(hf_config(config, **facts)).double()
    stock.load_state_dict(ours.state_dict())
    return ours, stock.train()


@pytest.mark.parametrize("drop_ins", [True, False])
@pytest.mark.parametrize(("family", "name"), [("bert", "mlm+nsp"), ("albert", "mlm+sop")])
def test_equals_the_loss_of_the_stock_class(
    corpus: Corpus, family: Family, name: ObjectiveName, drop_ins: bool
) -> None:
    """The stock class's own loss on padded segments, and its gradients; ours over packed rows in two micro-batches."""
    rows, objective = rows_and_objective(corpus, name)
    ours, stock = models(family, drop_ins, corpus)
    input_ids, labels = (torch.from_numpy(array) for array in objective.labels_of(rows))
    assert rows.pair_label is not None
    label = {"mlm+nsp": "next_sentence_label", "mlm+sop": "sentence_order_label"}[name]
    expected = stock(
        input_ids=pad_segments(rows, input_ids, 0),
        labels=pad_segments(rows, labels, -100),
        token_type_ids=token_types(rows),
        attention_mask=attention_mask(rows),
        **{label: torch.from_numpy(rows.pair_label).long()},
    ).loss
    expected.backward()
    loss = packed_loss(ObjectiveConfig(name=name))
    total = torch.zeros((), dtype=torch.float64)
    for batch in objective.prepare(rows, 2):
        for term, term_sum, count in zip(
            loss.terms, loss.sums(ours, batch), batch.window_counts(loss.terms), strict=True
        ):
            total = total + term.weight * term_sum / count
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    largest = max(float(parameter.grad.abs().max()) for parameter in stock.parameters())
    for (key, parameter), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-11 * largest, msg=key)


def test_without_a_pair_there_is_no_loss_of_pairs(corpus: Corpus) -> None:
    """Rows whose segments have one part: the sum is 0, and its gradient."""
    rows, objective = rows_and_objective(corpus, "mlm+nsp")
    assert rows.pair_label is not None
    rows.pair_label[:] = NO_PAIR
    (batch,) = objective.prepare(rows, 1)
    ours, _ = models("bert", True, corpus)
    tokens, pairs = packed_loss(ObjectiveConfig(name="mlm+nsp")).sums(ours, batch)
    assert (batch.num_pairs, float(pairs.detach())) == (0, 0.0)
    (tokens + pairs).backward()
    assert not ours.cls.seq_relationship.weight.grad.any()


def test_a_family_without_a_head_for_pairs_says_so() -> None:
    with pytest.raises(ValueError, match="roberta has no class with a head for sentence pairs"):
        model_class_name(ModelConfig(family="roberta"), head="pairs")
    assert FAMILIES["roberta"].pair_head is None


def test_the_step_compiles_into_one_graph(corpus: Corpus) -> None:
    """BERT, whose last block and pooler read chosen rows; and ALBERT, whose pooler is given rows by two hooks."""
    for family, name in (("bert", "mlm+nsp"), ("albert", "mlm+sop")):
        rows, objective = rows_and_objective(corpus, name)  # type: ignore[arg-type]
        ours, _ = models(family, True, corpus)  # type: ignore[arg-type]
        loss = packed_loss(ObjectiveConfig(name=name))  # type: ignore[arg-type]
        compiled = torch.compile(loss.function, fullgraph=True, dynamic=False, backend="aot_eager")
        for batch in objective.prepare(rows, 3):
            tensors = [getattr(batch, tensor) for tensor in loss.tensors]
            for found, expected in zip(compiled(ours, *tensors, batch.max_seqlen), loss.sums(ours, batch), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
