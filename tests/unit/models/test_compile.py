"""One graph and no second compilation: shapes are static, and nothing in the loss depends on values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipeline.config.run import Family, ObjectiveConfig
from pipeline.models.build import build_model
from pipeline.objectives.distil import distillation_loss
from pipeline.objectives.loss import as_terms, packed_loss_sum
from pipeline.objectives.registry import packed_loss
from tests.corpora import Corpus, random_lengths, write_corpus
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config
from tests.unit.models.test_stock_loss import CASES, Case, data_of, model_of

BATCHES = [[[32], [32]], [[7, 12, 5], [20]], [[1, 1, 9, 9], [16, 16]], [[8, 8, 8, 8], [31, 1]], [[2], [3]]]
OTHER_OBJECTIVES = [
    case
    for case in CASES
    if (case.family, case.objective)
    in (("bert", "mlm+nsp"), ("albert", "mlm+sop"), ("electra", "rtd"), ("bart", "denoise"))
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("compile") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


@pytest.fixture(autouse=True)
def _no_recompilation() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "dropout"), [*((family, 0.0) for family in FAMILIES), ("bert", 0.3)])
def test_loss_compiles_whole_and_once(family: Family, dropout: float) -> None:
    config = tiny_config(family, num_layers=1, attention_dropout=dropout, hidden_dropout=dropout)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0).double()
    compiled = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False, backend="aot_eager")
    for number, rows in enumerate(BATCHES):
        case = PackedCase(rows, seed=number)
        positions, labels = case.padded_predictions(48)
        arguments = (
            case.input_ids.view(2, 32),
            case.position_ids.view(2, 32),
            case.cu_seqlens,
            positions,
            labels,
            32,
        )
        results = []
        for loss_sum in (packed_loss_sum, compiled):
            torch.manual_seed(number)  # dropout, where there is some
            model.zero_grad()
            loss = loss_sum(model, *arguments)
            loss.backward()
            gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
            results.append((loss.detach(), torch.cat(gradients)))
        (eager_loss, eager_gradient), (loss, gradient) = results
        assert loss > 0
        torch.testing.assert_close(loss, eager_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, eager_gradient, rtol=1e-12, atol=1e-12 * eager_gradient.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_fifty_varied_batches_take_one_graph(family: Family) -> None:
    """Segmentations from one token to whole rows; training and validation, which is a graph of its own."""
    counter = CompileCounter()
    model = build_model(
        tiny_config(family, num_layers=1, hidden_dropout=0.1), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0
    )
    compiled = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False, backend=counter)
    draw = random.Random(0)
    segmentations = set()
    for number in range(50):
        rows = [[draw.randint(1, 32 // most) for _ in range(most)] for most in draw.choices((1, 2, 4, 8), k=2)]
        segmentations.add(tuple(map(tuple, rows)))
        case = PackedCase(rows, seed=number)
        positions, labels = case.padded_predictions(64)
        arguments = (case.input_ids.view(2, 32), case.position_ids.view(2, 32), case.cu_seqlens, positions, labels, 32)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            compiled(model.train(), *arguments).backward()
            if number % 10 == 0:
                with torch.no_grad():
                    compiled(model.eval(), *arguments)
    assert counter.frame_count == 2
    assert len(segmentations) > 40


@pytest.mark.parametrize("case", [*OTHER_OBJECTIVES, Case("bert", "distil")], ids=str)
def test_varied_batches_of_other_objectives_take_one_graph(case: Case, corpus: Corpus) -> None:
    """As above, with all that their batches hold besides: pairs, noise, numbers that draw, and with a teacher."""
    counter = CompileCounter()
    name = "mlm" if case.objective == "distil" else case.objective
    rows_of = replace(case, objective=name, model={**case.model, "num_layers": 1})
    model = model_of(rows_of, corpus, 0, drop_ins=True)
    if case.objective == "distil":
        teacher = model_of(rows_of, corpus, 1, drop_ins=True).eval().requires_grad_(False)
        loss = distillation_loss(teacher, ObjectiveConfig(name="distil"), "mlm")
    else:
        loss = packed_loss(ObjectiveConfig(name=case.objective, **case.settings))
    compiled = torch.compile(loss.function, fullgraph=True, dynamic=False, backend=counter)
    segmentations = set()
    for number, batch in enumerate(batch for seed in range(5) for batch in data_of(rows_of, corpus, seed)[3]):
        segmentations.add(tuple(batch.cu_seqlens.tolist()))
        arguments = [*(getattr(batch, name) for name in loss.tensors), batch.max_seqlen]
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            sum(as_terms(compiled(model.train(), *arguments))).backward()
            if number % 5 == 0:
                with torch.no_grad():
                    compiled(model.eval(), *arguments)
    assert counter.frame_count == 2
    assert len(segmentations) == 10
