"""Replaced tokens and distillation on a million tokens: what the discriminator reads says nothing of the masks but the
replacements themselves, draws follow the generator, and a model has nothing to learn from itself.

Seeds are fixed, so nothing here can flake. Bounds are five standard deviations.
Letters: R rows, S sequence length, P places for predictions, V vocabulary, G groups of tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.run import Family, ModelConfig, ObjectiveConfig
from pipeline.data.rows import Rows
from pipeline.models.build import build_model
from pipeline.models.electra import ReplacedTokenModel, build_replaced_token_model
from pipeline.objectives import rtd
from pipeline.objectives.batch import Batch
from pipeline.objectives.distil import distillation_loss
from pipeline.objectives.layout import real_slots
from pipeline.objectives.masking import num_predictions
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective, packed_loss
from tests.unit.objectives.hand_made_rows import SPECIAL_IDS, VOCAB_SIZE, VOCABULARY, bert_format, gpt_format, make_rows
from tests.unit.objectives.test_masking_statistics import assert_chi_square

NUM_ROWS, LENGTH, NUM_BATCHES = 2048, 512, 32
MASK_ID = SPECIAL_IDS["mask"]
RTD = ObjectiveConfig(name="rtd", mask_token_share=1.0, random_token_share=0.0)
NUM_GROUPS = 4


def million_tokens(causal: bool = False, num_rows: int = NUM_ROWS) -> Rows:
    """Rows of several segments and some padding; no mask token in the text."""
    generator = np.random.default_rng(3)
    lengths = []
    for _ in range(num_rows):
        cuts = np.sort(4 * generator.choice(np.arange(1, 120), 4, replace=False))
        lengths.append(np.diff(cuts, prepend=0, append=4 * generator.integers(122, LENGTH // 4 + 1)).tolist())
    rows = make_rows(lengths, gpt_format(LENGTH) if causal else bert_format(LENGTH))
    rows.tokens[rows.tokens == MASK_ID] = 9
    return rows


def objective_of(config: ObjectiveConfig, seed: int = 5) -> Objective:
    row_format = gpt_format(LENGTH) if config.name == "clm" else bert_format(LENGTH)
    return make_objective(config, VOCABULARY, row_format, seed, packing="best_fit")


def tiny(family: Family) -> ModelConfig:
    shape: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
    shape |= {"max_positions": LENGTH, "hidden_dropout": 0.0, "initializer_range": 0.5}
    return ModelConfig(family=family, **shape, **({"extra": {"embedding_size": 8}} if family == "electra" else {}))


@dataclass
class Watched:
    """What passes between the two models; the generator's logits may be another's."""

    generator: Callable[[Batch], Tensor]
    read: list[tuple[Any, ...]] = field(default_factory=list)
    """Arguments of the discriminator but for the model, a batch each."""
    labels: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    discriminates: bool = False
    """Whether the discriminator is computed, too."""

    def run(self, model: Any, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
        judge = rtd.discriminator_logits

        def watched_judge(model: Any, *arguments: Any) -> Tensor:
            self.read.append(arguments)
            self.scores.append(judge(model, *arguments) if self.discriminates else torch.zeros(arguments[0].shape[1]))
            return self.scores[-1]

        def watched_loss(scores: Tensor, labels: Tensor, weight: Tensor, reduction: str) -> Tensor:
            self.labels.append(labels)
            self.weights.append(weight)
            return scores.sum()

        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(rtd, "discriminator_logits", watched_judge)
            patch.setattr(rtd, "binary_cross_entropy_with_logits", watched_loss)
            for batch in batches:
                patch.setattr(rtd, "generator_logits", lambda *_, batch=batch: self.generator(batch))
                packed_loss(RTD).sums(model, batch)


def group_logits() -> Tensor:
    """(G, V); the mask token cannot be drawn."""
    logits = torch.randn(NUM_GROUPS, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    logits[:, MASK_ID] = float("-inf")
    return logits


def by_group(batch: Batch) -> Tensor:
    """A generator that knows of the true token which group it is of, (P, V)."""
    return group_logits()[batch.labels.clamp(min=0) % NUM_GROUPS]


def oracle(batch: Batch) -> Tensor:
    """A generator that is always right, (P, V)."""
    return 100.0 * torch.nn.functional.one_hot(batch.labels.clamp(min=0), VOCAB_SIZE)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return million_tokens()


@pytest.fixture(scope="module")
def batches(rows: Rows) -> list[Batch]:
    return objective_of(RTD).prepare(rows, NUM_BATCHES)


def text_of(rows: Rows) -> Tensor:
    return torch.from_numpy(rows.tokens.astype(np.int64)).flatten()


def places_of(batches: list[Batch]) -> Tensor:
    """Of the predictions, in the tokens of all batches."""
    size = batches[0].input_ids.numel()
    return torch.cat([n * size + b.prediction_positions[b.labels != -100] for n, b in enumerate(batches)])


def test_the_discriminator_reads_the_text_and_the_replacements_alone(
    rows: Rows, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(by_group)
    watched.run(None, batches, monkeypatch)
    text, read = text_of(rows), torch.cat([arguments[0][0] for arguments in watched.read])
    predicted = torch.zeros(len(text), dtype=torch.bool)
    predicted[places_of(batches)] = True
    assert rows.segment_length.sum() > 10**6
    assert (torch.cat([batch.input_ids.flatten() for batch in batches])[predicted] == MASK_ID).all()
    assert torch.equal(read[~predicted], text[~predicted])
    assert not (read == MASK_ID).any()
    # A token is judged as replaced where it is another one, and where the generator has drawn the true one as original.
    labels, weights = torch.cat(watched.labels), torch.cat(watched.weights)
    assert torch.equal(labels.bool(), read != text)
    assert not labels[~predicted].any()
    drawn_true = predicted & (read == text)
    assert drawn_true.sum() > 500
    assert not labels[drawn_true].any()
    assert torch.equal(weights.bool(), torch.from_numpy(real_slots(rows)).flatten())
    for batch, (_, positions, cu_seqlens, *rest) in zip(batches, watched.read, strict=True):
        assert torch.equal(positions, batch.position_ids.view(1, -1))
        assert torch.equal(cu_seqlens, batch.cu_seqlens)
        assert rest == [LENGTH]


def test_draws_follow_the_generator_whatever_the_true_token(
    rows: Rows, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(by_group)
    watched.run(None, batches, monkeypatch)
    places = places_of(batches)
    truth, drawn = (tokens[places] for tokens in (text_of(rows), torch.cat([seen[0][0] for seen in watched.read])))
    possible = torch.arange(VOCAB_SIZE) != MASK_ID
    for group, probabilities in enumerate(group_logits().double().softmax(-1)):
        in_group = truth % NUM_GROUPS == group
        observed = torch.bincount(drawn[in_group], minlength=VOCAB_SIZE)[possible].numpy()
        assert_chi_square(observed, (int(in_group.sum()) * probabilities[possible]).numpy(), int(possible.sum()) - 1)
    # And of each true token as many are drawn again as it is likely.
    tokens, counts = truth.unique(return_counts=True)
    right = torch.bincount(truth[drawn == truth], minlength=VOCAB_SIZE)[tokens]
    chance = group_logits().double().softmax(-1)[tokens % NUM_GROUPS, tokens]
    expected, variance = counts * chance, counts * chance * (1 - chance)
    statistic = float(((right - expected) ** 2 / variance).sum())
    assert abs(statistic - len(tokens)) < 5 * math.sqrt(2 * len(tokens))


def test_masks_of_replaced_tokens_have_their_rate_in_every_row_and_place(rows: Rows, batches: list[Batch]) -> None:
    row, place = np.divmod(places_of(batches).numpy(), LENGTH)
    special = np.isin(rows.tokens, VOCABULARY.all_special_ids)
    maskable = (~special).sum(1)
    wanted = [num_predictions(int(number), RTD.mask_rate) for number in maskable]
    np.testing.assert_array_equal(np.bincount(row, minlength=NUM_ROWS), wanted)
    # A place is predicted with the share of its row, where it is maskable: sums of independent draws over the rows.
    shares = np.where(special, 0.0, (np.array(wanted) / np.maximum(maskable, 1))[:, None])  # R S
    expected, variance = shares.sum(0), (shares * (1 - shares)).sum(0)
    used = expected > 5
    observed = np.bincount(place, minlength=LENGTH)
    statistic = float(((observed - expected)[used] ** 2 / variance[used]).sum())
    assert used.sum() > 0.9 * LENGTH
    assert abs(statistic - used.sum()) < 5 * math.sqrt(2 * used.sum())


def test_no_trace_of_the_masks_is_left_where_the_generator_is_right(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other masks every score of a real discriminator is the same, to the bit: it is that of the text itself."""
    model = build_replaced_token_model(tiny("electra"), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0)
    found = []
    for seed in (5, 6):
        watched = Watched(oracle, discriminates=True)
        watched.run(model, objective_of(RTD, seed).prepare(rows, NUM_BATCHES), monkeypatch)
        read = torch.cat([arguments[0][0] for arguments in watched.read])
        assert torch.equal(read, text_of(rows))
        assert not torch.cat(watched.labels).any()
        found.append(torch.cat(watched.scores))
    assert torch.equal(*found)
    assert found[0].std() > 0.01


def test_the_discriminator_teaches_the_generator_nothing(batches: list[Batch]) -> None:
    """Draws have no gradient: of the second term only the shared embeddings have one, beside the discriminator."""
    model: ReplacedTokenModel = build_replaced_token_model(
        tiny("electra"), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0
    )
    _, judged = packed_loss(RTD).sums(model, batches[0])
    judged.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("generator."), name


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_model_has_nothing_to_learn_from_itself(family: Family) -> None:
    """In fp32: the divergence is 0 and so is its gradient, the cosine 1 but for its rounding. Of another model not."""
    model, other = (
        build_model(tiny(family), vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=seed) for seed in (0, 1)
    )
    hard = "clm" if family == "gpt2" else "mlm"
    batches = objective_of(ObjectiveConfig(name=hard)).prepare(million_tokens(family == "gpt2"), NUM_BATCHES)
    assert batches[0].window_real_tokens > 10**6
    config = ObjectiveConfig(name="distil")
    itself = distillation_loss(copy.deepcopy(model).eval().requires_grad_(False), config, hard)
    with torch.no_grad():
        sums = [itself.sums(model, batch) for batch in batches]
    words, soft, apart = (float(sum(term)) / batches[0].window_predictions for term in zip(*sums, strict=True))
    assert words > 1
    assert abs(soft) < 1e-9
    assert abs(apart) < 1e-6
    _, soft_sum, apart_sum = itself.sums(model, batches[0])
    (soft_sum + apart_sum).backward()
    largest = max(float(one.grad.abs().max()) for one in model.parameters() if one.grad is not None)
    assert largest / batches[0].num_predictions < 1e-6
    with torch.no_grad():
        _, *of_other = distillation_loss(other.eval(), config, hard).sums(model, batches[0])
    assert all(float(term) / batches[0].num_predictions > 0.1 for term in of_other)
