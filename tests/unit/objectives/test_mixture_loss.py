"""The loss of a mixture: in each step that of one objective, with gradients for all parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.config.run import Family, ModelConfig, ObjectiveConfig, ObjectiveName
from pipeline.data.row_format import row_format
from pipeline.data.stream import open_stream
from pipeline.models.build import build_model
from pipeline.objectives.batch import Batch
from pipeline.objectives.mixture_loss import MixtureLoss, labelled
from pipeline.objectives.registry import make_objective, packed_loss
from tests.corpora import Corpus, random_lengths, write_corpus

PAIRS: dict[Family, ObjectiveName] = {"bert": "mlm+nsp", "albert": "mlm+sop"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("mixture") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def batch_of(corpus: Corpus, config: ObjectiveConfig, task: int) -> Batch:
    packing = "pairs_sop" if config.name == "mlm+sop" else "pairs_nsp"
    stream = open_stream(corpus.files, kind="bert", sequence_length=64, global_batch_size=6, packing=packing, seed=1)
    objective = make_objective(config, corpus.manifest, row_format(corpus.manifest, "bert", 64), 3, packing=packing)
    return replace(objective.prepare(stream.rows(0), 1)[0], task=task)


def model_of(corpus: Corpus, family: Family, head: Any) -> Any:
    config = ModelConfig(
        family=family, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_positions=64,
        hidden_dropout=0.0, initializer_range=0.2,
    )  # fmt: skip
    facts: dict[str, Any] = {"vocab_size": corpus.manifest.vocab_size, "special_ids": corpus.manifest.special_ids}
    return build_model(config, **facts, head=head, seed=0).double()


def mixture_of(pairs: ObjectiveName) -> tuple[list[ObjectiveConfig], MixtureLoss]:
    configs = [ObjectiveConfig(), ObjectiveConfig(name=pairs), ObjectiveConfig(mask_rate=0.4)]
    losses = tuple(packed_loss(config) for config in configs)
    return configs, MixtureLoss(losses, ("plain", "pairs", "dense"), (1.0, 2.0, 5.0))


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_has_the_loss_and_gradient_of_its_objective_alone(
    corpus: Corpus, family: Family, compiled: bool
) -> None:
    """Masked tokens alone are trained by a class without a head for pairs, whose gradient is 0 in the mixture."""
    configs, loss = mixture_of(PAIRS[family])
    if compiled:
        loss = loss.with_functions(lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend="aot_eager"))
    assert [(term.name, term.task) for term in loss.terms] == [
        ("mlm", 0), ("mlm", 1), (PAIRS[family][4:], 1), ("mlm", 2),
    ]  # fmt: skip
    ours = model_of(corpus, family, "pairs")
    for number, config in enumerate(configs):
        batch = batch_of(corpus, config, number)
        alone = model_of(corpus, family, "pairs" if number == 1 else "tokens")
        alone.load_state_dict(ours.state_dict(), strict=False)
        sums = loss.sums(ours, batch)
        expected = packed_loss(config).sums(alone, batch)
        own = [one for one, term in zip(sums, loss.terms, strict=True) if term.task == number]
        assert [float(one.detach()) for one, term in zip(sums, loss.terms, strict=True) if term.task != number] == [
            0.0
        ] * (4 - len(own))
        for one, other in zip(own, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
        ours.zero_grad()
        (sum(sums) / 7).backward()  # type: ignore[union-attr]
        (sum(expected) / 7).backward()  # type: ignore[union-attr]
        gradients = {name: parameter.grad for name, parameter in alone.named_parameters()}
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None, name
            truth = gradients.get(name)
            if truth is None:
                assert number != 1
                assert not parameter.grad.any(), name
            else:
                torch.testing.assert_close(parameter.grad, truth, rtol=1e-10, atol=1e-13, msg=name)
        with torch.no_grad():
            measured, shares = loss.tasks[number].measured(ours, batch)
        assert [float(one) for one in measured] == pytest.approx([float(one.detach()) for one in own], rel=1e-12)
        assert shares[0][1] == batch.num_predictions


def test_a_step_logs_its_own_objective(corpus: Corpus) -> None:
    _, loss = mixture_of("mlm+nsp")
    assert loss.metrics([6.0, 0.0, 0.0, 0.0], [3, 0, 0, 0], 0) == {"loss": 2.0, "loss_plain": 2.0}
    assert loss.metrics([0.0, 6.0, 3.0, 0.0], [0, 3, 6, 0], 1) == {
        "loss": 2.5, "loss_pairs": 2.5, "loss_pairs_mlm": 2.0, "loss_pairs_nsp": 0.5,
    }  # fmt: skip
    assert loss.metrics([0.0] * 4, [0] * 4, 2) == {"loss": None, "loss_dense": None}


def test_held_out_metrics_have_the_labels_and_the_mean_by_weight() -> None:
    _, loss = mixture_of("mlm+nsp")
    alone = {"loss": 1.0, "perplexity": 2.0, "bits_per_token": 3.0, "accuracy_mlm": 0.5}
    pairs = {"loss": 2.0, "loss_mlm": 1.5, "loss_nsp": 0.5, "accuracy_mlm": 0.25, "accuracy_nsp": 0.75}
    assert loss.held_out([alone, pairs, {"loss": 4.0}]) == {
        "loss": (1 + 2 * 2 + 5 * 4) / 8,
        "loss_plain": 1.0, "perplexity_plain": 2.0, "bits_per_token_plain": 3.0, "accuracy_plain": 0.5,
        "loss_pairs": 2.0, "loss_pairs_mlm": 1.5, "loss_pairs_nsp": 0.5,
        "accuracy_pairs_mlm": 0.25, "accuracy_pairs_nsp": 0.75,
        "loss_dense": 4.0,
    }  # fmt: skip
    rtd = {"accuracy_mlm": 0.1, "accuracy_rtd": 0.9, "recall_rtd": 0.5}
    assert labelled(rtd, "x") == {"accuracy_x_mlm": 0.1, "accuracy_x_rtd": 0.9, "recall_x_rtd": 0.5}
