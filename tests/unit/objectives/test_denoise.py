"""Denoising: batches of encoder and decoder, what they hold, and the loss against the stock class."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.base.errors import UserError
from pipeline.config.run import ModelConfig, ObjectiveConfig
from pipeline.data.digest import row_digests
from pipeline.data.row_format import row_format
from pipeline.data.rows import Rows
from pipeline.data.stream import open_stream
from pipeline.models.build import build_model, hf_config
from pipeline.models.flops import num_parameters, seq2seq_flops_per_step
from pipeline.models.packed import packed_seq2seq_logits
from pipeline.objectives.denoise import Denoising
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective, packed_loss
from tests.corpora import Corpus, random_lengths, write_corpus

LENGTH = 64
CONFIG = ObjectiveConfig(name="denoise", deletion_rate=0.05, rotation=0.2)
MASS = ObjectiveConfig(name="denoise", span_mask_rate=0.5, predict="masked", infilling_rate=0.0, permute_sentences=0.0)
SHAPE = ModelConfig(
    family="bart",
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    intermediate_size=40,
    max_positions=LENGTH,
    hidden_dropout=0.0,
    initializer_range=0.2,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("denoise") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def rows_and_objective(corpus: Corpus, config: ObjectiveConfig = CONFIG, step: int = 0) -> tuple[Rows, Objective]:
    stream = open_stream(corpus.files, kind="bert", sequence_length=LENGTH, global_batch_size=8, seed=1, sentences=True)
    form = row_format(corpus.manifest, "bert", LENGTH)
    return stream.rows(step), make_objective(config, corpus.manifest, form, 3, packing="best_fit")


def facts(corpus: Corpus) -> dict[str, Any]:
    return {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}


def segments_of(ids: Tensor, bounds: Tensor) -> list[Tensor]:
    flat = ids.flatten()
    return [flat[begin:end] for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def test_sentence_starts_are_those_of_the_documents(corpus: Corpus) -> None:
    rows, _ = rows_and_objective(corpus)
    assert rows.sentence_starts is not None
    documents = [document for shard in corpus.documents["train"] for document in shard]
    expected = np.zeros(rows.tokens.shape, np.bool_)
    for row, start, length, number, offset in zip(
        rows.segment_row, rows.segment_start, rows.segment_length, rows.document, rows.offset, strict=True
    ):
        starts = documents[number].sentences
        assert starts is not None
        inside = starts[(starts >= offset) & (starts < offset + length - 2)] - offset
        expected[row, start + 1 + inside] = True
    assert expected.sum() > 25
    np.testing.assert_array_equal(rows.sentence_starts, expected)


@pytest.mark.parametrize("num_batches", [1, 4])
def test_every_decoder_segment_restores_the_clean_one(corpus: Corpus, num_batches: int) -> None:
    rows, objective = rows_and_objective(corpus)
    end = build_model(SHAPE, **facts(corpus)).config.decoder_start_token_id
    clean = [
        rows.tokens[row, start : start + length].astype(np.int64).tolist()
        for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True)
    ]
    found, noisy = [], []
    for batch in objective.prepare(rows, num_batches):
        assert batch.decoder_input_ids is not None
        assert batch.decoder_cu_seqlens is not None
        assert len(batch.cu_seqlens) == len(batch.decoder_cu_seqlens)
        assert int(batch.cu_seqlens[-1]) == int(batch.decoder_cu_seqlens[-1]) == batch.input_ids.numel()
        labels = torch.full((batch.input_ids.numel(),), -100)
        labels[batch.prediction_positions] = batch.labels
        decoder = segments_of(batch.decoder_input_ids, batch.decoder_cu_seqlens)
        targets = segments_of(labels, batch.decoder_cu_seqlens)
        encoder = segments_of(batch.input_ids, batch.cu_seqlens)
        squares = products = total = 0
        for inputs, target, source in zip(decoder, targets, encoder, strict=True):
            if len(inputs) == 0 or (target == -100).all():
                continue
            assert inputs.tolist() == [end, *target.tolist()[:-1]]
            found.append(target.tolist())
            noisy.append(source.tolist())
            total, squares = total + len(source), squares + len(source) ** 2
            products += len(source) * len(target)
        counts = (batch.num_encoder_tokens, batch.sum_squared_encoder_lengths, batch.sum_cross_products)
        assert counts == (total, squares, products)
    assert found == clean
    assert all(len(one) <= len(other) for one, other in zip(noisy, clean, strict=True))
    assert sum(one != other for one, other in zip(noisy, clean, strict=True)) > 0.8 * len(clean)
    assert all(one[0] == other[0] and one[-1] == other[-1] for one, other in zip(noisy, clean, strict=True))


def test_noise_does_not_depend_on_the_batch(corpus: Corpus) -> None:
    rows, objective = rows_and_objective(corpus)
    ids = [torch.cat([batch.input_ids for batch in objective.prepare(rows, number)]) for number in (1, 2, 8)]
    assert all(torch.equal(one, ids[0]) for one in ids)
    shapes = {
        tuple(value.shape) for batch in objective.prepare(rows, 4) for name, value in vars(batch).items()
        if isinstance(value, Tensor) and name == "cu_seqlens"
    }  # fmt: skip
    assert len(shapes) == 1


def encoder_inputs_targets(batch: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every segment what the encoder reads, what the decoder reads and what it predicts (-100: nothing)."""
    labels = torch.full((batch.input_ids.numel(),), -100)
    labels[batch.prediction_positions] = batch.labels
    encoder = segments_of(batch.input_ids, batch.cu_seqlens)
    decoder = segments_of(batch.decoder_input_ids, batch.decoder_cu_seqlens)
    targets = segments_of(labels, batch.decoder_cu_seqlens)
    return [both for both in zip(encoder, decoder, targets, strict=True) if (both[2] != -100).any()]


@pytest.mark.parametrize("num_batches", [1, 4])
def test_only_the_masked_span_is_predicted_and_read(corpus: Corpus, num_batches: int) -> None:
    rows, objective = rows_and_objective(corpus, MASS)
    end = build_model(SHAPE, **facts(corpus)).config.decoder_start_token_id
    mask = corpus.manifest.special_ids["mask"]
    clean = [
        rows.tokens[row, start : start + length].astype(np.int64).tolist()
        for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True)
    ]
    batches = objective.prepare(rows, num_batches)
    found = [both for batch in batches for both in encoder_inputs_targets(batch)]
    assert len(found) == len(clean)
    num_predicted = num_masked = 0
    for (encoder, inputs, targets), text in zip(found, clean, strict=True):
        places = np.flatnonzero(targets != -100)
        begin, behind = places[0], places[-1] + 1
        num_text = len(text) - 2
        assert len(places) == behind - begin == max(1, int(0.5 * num_text + 0.5))
        assert begin >= 1
        assert behind <= len(text) - 1
        assert targets[begin:behind].tolist() == text[begin:behind]
        read = [token if begin <= place < behind else mask for place, token in enumerate(text)]
        assert inputs.tolist() == [end, *read[:-1]]
        assert encoder[:begin].tolist() == text[:begin]
        assert encoder[behind:].tolist() == text[behind:]
        num_predicted += len(places)
        num_masked += int((encoder[begin:behind] == mask).sum())
    assert sum(batch.num_predictions for batch in batches) == num_predicted
    assert batches[0].window_predictions == num_predicted
    assert len(batches[0].labels) < batches[0].input_ids.numel()  # the head is spared what is never predicted
    assert 0.7 < num_masked / num_predicted < 0.9


def test_a_masked_span_of_everything_has_room(corpus: Corpus) -> None:
    rows, objective = rows_and_objective(corpus, replace(MASS, span_mask_rate=1.0))
    for batch in objective.prepare(rows, 8):
        for encoder, _, targets in encoder_inputs_targets(batch):
            assert (targets != -100).sum() == len(encoder) - 2


def models(corpus: Corpus) -> tuple[Any, Any]:
    ours = build_model(SHAPE, **facts(corpus), seed=0).double()
    stock = transformers.BartForConditionalGeneration(hf_config(SHAPE, **facts(corpus))).double().train()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


@pytest.mark.parametrize("config", [CONFIG, MASS], ids=["all", "masked"])
def test_equals_the_stock_class(corpus: Corpus, config: ObjectiveConfig) -> None:
    """Every segment by itself: the loss that the stock class computes, and its gradients."""
    rows, objective = rows_and_objective(corpus, config)
    ours, stock = models(corpus)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in objective.prepare(rows, 2):
        for source, inputs, target in encoder_inputs_targets(batch):
            read = None if config.predict == "all" else inputs[None]  # the stock class shifts the labels itself
            size = int((target != -100).sum())
            found = stock(input_ids=source[None], decoder_input_ids=read, labels=target[None]).loss
            total, count = total + found * size, count + size
    total.backward()
    loss = packed_loss(config)
    batches = objective.prepare(rows, 2)
    found = sum(loss.sums(ours, batch)[0] for batch in batches)
    assert batches[0].window_predictions == count
    torch.testing.assert_close(found, total, rtol=1e-10, atol=0)
    found.backward()  # type: ignore[union-attr]
    largest = max(float(parameter.grad.abs().max()) for parameter in stock.parameters())
    for (name, parameter), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-11 * largest, msg=name)


def test_the_step_compiles_into_one_graph(corpus: Corpus) -> None:
    rows, objective = rows_and_objective(corpus)
    ours, _ = models(corpus)
    loss = packed_loss(CONFIG)
    compiled = torch.compile(loss.function, fullgraph=True, dynamic=False, backend="aot_eager")
    for batch in objective.prepare(rows, 4):
        tensors = [getattr(batch, name) for name in loss.tensors]
        torch.testing.assert_close(
            compiled(ours, *tensors, batch.max_seqlen), loss.sums(ours, batch)[0], rtol=1e-12, atol=0
        )


def test_parameters_and_flops(corpus: Corpus) -> None:
    ours, _ = models(corpus)
    vocab_size = corpus.manifest.vocab_size
    assert num_parameters(SHAPE, vocab_size) == sum(parameter.numel() for parameter in ours.parameters())
    rows, objective = rows_and_objective(corpus)
    (batch,) = objective.prepare(rows, 1)
    full = replace_padding(batch)
    names = ("input_ids", "position_ids", "cu_seqlens")
    encoder, decoder = ([getattr(batch, f"{side}{name}") for name in names] for side in ("", "decoder_"))
    for side in (encoder, decoder):
        side[0], side[1] = side[0].view(1, -1), side[1].view(-1)
    with FlopCounterMode(display=False) as counter:
        packed_seq2seq_logits(ours, *encoder, *decoder, LENGTH, batch.prediction_positions).sum().backward()
    counted = seq2seq_flops_per_step(
        SHAPE, vocab_size, full.num_real_tokens, full.sum_squared_lengths, full.num_predictions,
        full.num_encoder_tokens, full.sum_squared_encoder_lengths, full.sum_cross_products,
    )  # fmt: skip
    assert counter.get_total_flops() == counted


def replace_padding(batch: Any) -> Any:
    """The batch with the counts of all that is computed: padding is a text of its own to both sides."""
    assert batch.decoder_cu_seqlens is not None
    encoder, decoder = (bounds.diff().long() for bounds in (batch.cu_seqlens, batch.decoder_cu_seqlens))
    return replace(
        batch,
        num_real_tokens=int(decoder.sum()),
        sum_squared_lengths=int((decoder**2).sum()),
        num_predictions=len(batch.labels),
        num_encoder_tokens=int(encoder.sum()),
        sum_squared_encoder_lengths=int((encoder**2).sum()),
        sum_cross_products=int((encoder * decoder).sum()),
    )


def test_what_it_needs(corpus: Corpus) -> None:
    form = row_format(corpus.manifest, "bert", LENGTH)
    silent = ObjectiveConfig(name="denoise", permute_sentences=0.0)
    assert not make_objective(silent, corpus.manifest, form, 3, packing="best_fit").needs_sentences
    assert make_objective(CONFIG, corpus.manifest, form, 3, packing="best_fit").needs_sentences

    without_mask: Any = SimpleNamespace(vocab_size=10, all_special_ids=(0,), special_ids={"mask": None})
    with pytest.raises(UserError, match="denoise needs a mask token"):
        Denoising.of(CONFIG, without_mask, form, 0, 4)


def test_a_corpus_without_sentences_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("plain") / "corpus"
    plain = write_corpus(directory, random_lengths(0, 1, 9), vocab_size=200, sentences=False)
    with pytest.raises(UserError, match=r"does not say where sentences begin\. Build it .* or set it to 0"):
        open_stream(plain.files, kind="bert", sequence_length=LENGTH, global_batch_size=2, sentences=True)


@pytest.mark.parametrize("config", [CONFIG, MASS])
def test_digests_name_the_noise(corpus: Corpus, config: ObjectiveConfig) -> None:
    rows, objective = rows_and_objective(corpus, config)
    noisy, labels = objective.labels_of(rows)
    batches = objective.prepare(rows, 4, digests=True)
    digests = [batch.row_digests for batch in batches]
    found = torch.cat([one for one in digests if one is not None]).numpy()
    np.testing.assert_array_equal(found, row_digests(rows, noisy, labels))
    np.testing.assert_array_equal(noisy, torch.cat([batch.input_ids for batch in batches]).numpy())
    _, other = rows_and_objective(corpus, replace(config, token_mask_rate=0.2))
    assert (other.labels_of(rows)[0] != noisy).any()
