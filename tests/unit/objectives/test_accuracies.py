"""What evaluations count beside the loss, against the logits of the stock classes, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pipeline.config.run import Family, ModelConfig, ObjectiveConfig, ObjectiveName, Packing
from pipeline.data.row_format import row_format
from pipeline.data.stream import open_stream
from pipeline.models import head_loss
from pipeline.models.build import build_model, hf_config
from pipeline.models.electra import ReplacedTokenModel, build_replaced_token_model, part_of, replaced_tokens
from pipeline.models.families import generator_config
from pipeline.objectives.batch import Batch
from pipeline.objectives.distil import distillation_loss
from pipeline.objectives.loss import PackedLoss
from pipeline.objectives.registry import make_objective, packed_loss, row_kind
from tests.corpora import Corpus, random_lengths, write_corpus

LENGTH = 64


@dataclass(frozen=True)
class Case:
    family: Family
    name: ObjectiveName
    packing: Packing = "best_fit"
    distilled: bool = False

    def __str__(self) -> str:
        return f"{self.family} {'distil' if self.distilled else self.name}"


CASES = (
    Case("bert", "mlm"),
    Case("bert", "mlm+nsp", "pairs_nsp"),
    Case("albert", "mlm+sop", "pairs_sop"),
    Case("electra", "rtd"),
    Case("gpt2", "clm"),
    Case("bart", "denoise"),
    Case("bert", "mlm", distilled=True),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("accuracies") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def shape(case: Case) -> ModelConfig:
    return ModelConfig(
        family=case.family, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, max_positions=64,
        hidden_dropout=0.0, initializer_range=0.3, generator_size=0.5,
    )  # fmt: skip


def model_and_loss(case: Case, corpus: Corpus) -> tuple[Any, PackedLoss]:
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    if case.name == "rtd":
        return build_replaced_token_model(shape(case), **facts, seed=0).double(), packed_loss(config_of(case))
    head = "pairs" if case.packing != "best_fit" else "tokens"
    model = build_model(shape(case), **facts, head=head, seed=0).double()  # type: ignore[arg-type]
    if case.distilled:
        teacher = build_model(shape(case), **facts, seed=1).double().requires_grad_(False)
        return model, distillation_loss(teacher, config_of(case), case.name)
    return model, packed_loss(config_of(case))


def config_of(case: Case) -> ObjectiveConfig:
    return ObjectiveConfig(name=case.name, permute_sentences=0.0)


def batches_of(case: Case, corpus: Corpus) -> list[Batch]:
    kind = row_kind(case.name)
    stream = open_stream(
        corpus.files, kind=kind, sequence_length=LENGTH, global_batch_size=12, packing=case.packing, seed=1
    )
    form = row_format(corpus.manifest, kind, LENGTH)
    return make_objective(config_of(case), corpus.manifest, form, 3, packing=case.packing).prepare(stream.rows(0), 2)


def stock_of(model: Any, case: Case, corpus: Corpus) -> Any:
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    if isinstance(model, ReplacedTokenModel):
        weights = dict(model.named_parameters())
        generator = transformers.ElectraForMaskedLM(hf_config(generator_config(shape(case)), **facts)).double().eval()
        generator.load_state_dict(part_of(weights, "generator"), strict=False)
        generator.tie_weights()
        judge = transformers.ElectraForPreTraining(hf_config(shape(case), **facts)).double().eval()
        judge.load_state_dict(part_of(weights, "discriminator"))
        generator.judge = judge
        return generator
    stock = getattr(transformers, type(model).__name__)(hf_config(shape(case), **facts)).double().eval()
    stock.load_state_dict(model.state_dict())
    return stock


def segments(batch: Batch) -> Iterator[tuple[int, slice, slice]]:
    """Number of a segment, its slots where predictions are, and its slots in ``input_ids``."""
    predicted = batch.cu_seqlens if batch.decoder_cu_seqlens is None else batch.decoder_cu_seqlens
    for number in range(len(predicted) - 1):
        own, read = (slice(*bounds[number : number + 2].tolist()) for bounds in (predicted, batch.cu_seqlens))
        if own.stop > own.start:
            yield number, own, read


def stock_logits(stock: Any, batch: Batch) -> tuple[Tensor, dict[int, Tensor]]:
    """Of every slot (R*S, V), and by first slot of pairs (2,)."""
    rows: list[Tensor] = []
    pairs: dict[int, Tensor] = {}
    for _, own, read in segments(batch):
        more: dict[str, Any] = {}
        ids = batch.input_ids.flatten()[read][None]
        if batch.decoder_input_ids is not None:
            if read.stop == read.start:  # padding of the decoder alone
                ids = batch.input_ids.new_zeros(1, 1)
            more["decoder_input_ids"] = batch.decoder_input_ids.flatten()[own][None]
        if batch.token_type_ids is not None:
            more["token_type_ids"] = batch.token_type_ids.flatten()[own][None]
        outputs = stock(input_ids=ids, **more)
        if batch.token_type_ids is None:
            rows.append(outputs.logits[0])
        else:
            rows.append(outputs.prediction_logits[0])
            pairs[own.start] = (
                outputs.seq_relationship_logits if "seq_relationship_logits" in outputs else outputs.sop_logits
            )[0]
    return torch.cat(rows), pairs


def shares_of_rtd(judge: Any, batch: Batch, logits: Tensor) -> dict[str, list[int]]:
    counted = batch.labels != -100
    places, numbers = batch.prediction_positions[counted], batch.uniforms[counted]  # type: ignore[index]
    text = batch.input_ids.flatten().clone()
    text[places] = batch.labels[counted]
    seen = text.clone()
    seen[places] = replaced_tokens(logits[places], numbers)
    found = dict.fromkeys(("accuracy_rtd", "recall_rtd", "precision_rtd", "replaced_rtd"), (0, 0))
    total = torch.zeros(4, 2, dtype=torch.long)
    for _, own, _ in segments(batch):
        if not bool(batch.is_real.flatten()[own].any()):  # type: ignore[union-attr]
            continue
        says = torch.sigmoid(judge(input_ids=seen[own][None]).logits[0]) > 0.5
        was = seen[own] != text[own]
        every = torch.ones_like(was)
        for line, (some, among) in enumerate(((says == was, every), (says, was), (was, says), (was, every))):
            total[line] += torch.tensor([int(some[among].sum()), int(among.sum())])
    return dict(zip(found, total.tolist(), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracies_are_those_of_plain_logits(case: Case, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several chunks, compiled and not; every third label is made the likeliest token, or few would be right."""
    monkeypatch.setitem(head_loss._CHUNK_BYTES, "cpu", 20 * 1024)
    model, loss = model_and_loss(case, corpus)
    model.eval()
    stock = stock_of(model, case, corpus)
    compiled = loss.with_functions(lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend="aot_eager"))
    total = torch.zeros(len(loss.shares), 2, dtype=torch.long)
    for batch in batches_of(case, corpus):
        with torch.no_grad():
            logits, pair_logits = stock_logits(stock, batch)
            likeliest = logits.argmax(-1)[batch.prediction_positions]
            labels = batch.labels.clone()
            labels[::3] = torch.where(labels[::3] == -100, -100, likeliest[::3])
            changed = replace(batch, labels=labels)
            sums, shares = loss.measured(model, changed)
            again_sums, again = compiled.measured(model, changed)
            plain_sums = loss.sums(model, changed)
            found = {name: share.tolist() for name, share in zip(loss.shares, shares, strict=True)}
            hits = int((likeliest == labels).sum())
            expected = {loss.shares[0]: [hits, int((labels != -100).sum())]}
            if pair_logits:
                slots = batch.prediction_positions[batch.pair_slots].tolist()
                judged = [
                    (slot, label) for slot, label in zip(slots, batch.pair_labels.tolist(), strict=True) if label >= 0
                ]
                right = sum(int(pair_logits[slot].argmax()) == label for slot, label in judged)
                expected[loss.shares[1]] = [right, len(judged)]
            if isinstance(model, ReplacedTokenModel):
                expected |= shares_of_rtd(stock.judge, changed, logits)
        assert found == expected
        assert expected[loss.shares[0]][0] > 0.2 * expected[loss.shares[0]][1]
        assert [share.tolist() for share in again] == list(found.values())
        for one, other, third in zip(sums, again_sums, plain_sums, strict=True):
            torch.testing.assert_close(one, third, rtol=1e-12, atol=0)
            torch.testing.assert_close(one, other, rtol=1e-10, atol=0)
        total += torch.tensor(list(found.values()))
    assert all(0 < some < every for some, every in total.tolist())


def test_the_loss_goes_on_as_before_after_hits_were_counted(corpus: Corpus) -> None:
    """And a loss whose forward fails leaves the head as it was."""
    case = CASES[0]
    model, loss = model_and_loss(case, corpus)
    (batch, other) = batches_of(case, corpus)
    head = head_loss.head_loss_of(model)
    loss.measured(model, batch)
    assert (head.counts_hits, head.hits) == (False, None)
    assert loss.sums(model, other)[0].requires_grad
    with pytest.raises(IndexError):
        loss.measured(model, replace(batch, input_ids=batch.input_ids + 10_000))
    assert (head.counts_hits, head.hits, head.labels) == (False, None, None)
