"""The loss of a prepared batch against the stock model, its own loss arithmetic and any split into micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config.run import Family, ModelConfig, ObjectiveConfig
from pipeline.data.rows import Rows
from pipeline.models import head_loss
from pipeline.models.build import build_model, hf_config
from pipeline.models.families import FAMILIES
from pipeline.objectives.batch import Batch
from pipeline.objectives.loss import vocabulary_loss
from pipeline.objectives.objective import Objective
from pipeline.objectives.registry import make_objective
from tests.unit.objectives.hand_made_rows import SPECIAL_IDS, VOCAB_SIZE, VOCABULARY, bert_format, gpt_format, make_rows

LENGTHS = [[24], [3, 9, 12], [10, 10], [5]]


def batch_loss(model: Any, batch: Batch) -> Tensor:
    (loss_sum,) = vocabulary_loss("mlm").sums(model, batch)
    return loss_sum


def parts(family: Family) -> tuple[transformers.PreTrainedModel, ModelConfig, Objective, Rows]:
    config = ModelConfig(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=24,
        hidden_dropout=0.0,
        initializer_range=0.2,
    )
    row_format = gpt_format(24) if family == "gpt2" else bert_format(24)
    objective_config = ObjectiveConfig(name="clm" if family == "gpt2" else "mlm")
    objective = make_objective(objective_config, VOCABULARY, row_format, 3, packing="best_fit")
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0)
    return model, config, objective, make_rows(LENGTHS, row_format)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_equals_the_stock_model_on_single_segments(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss that the stock class computes itself, and the gradients of whole logits, in several chunks of ours."""
    model, config, objective, rows = parts(family)
    (batch,) = objective.prepare(rows, 1)
    monkeypatch.setitem(head_loss._CHUNK_BYTES, "cpu", 5 * 1024)
    loss_sum = batch_loss(model.double(), batch)
    loss_sum.backward()
    stock = getattr(transformers, FAMILIES[family].model_class)(
        hf_config(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS)
    ).double()
    stock.load_state_dict(model.state_dict())
    input_ids, labels = (torch.from_numpy(array) for array in objective.labels_of(rows))
    expected = torch.zeros((), dtype=torch.float64)
    own_loss = 0.0
    for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
        ids, wanted = (tensor[row, int(start) : int(start + length)][None] for tensor in (input_ids, labels))
        count = int((wanted != -100).sum())
        if count:  # the stock classes give the mean; the causal one shifts labels by itself
            output = stock.eval()(ids, labels=ids if family == "gpt2" else wanted)
            own_loss += count * output.loss.item()
            expected += torch.nn.functional.cross_entropy(output.logits[0], wanted[0], reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss_sum, expected, rtol=1e-12, atol=0)
    assert loss_sum.item() == pytest.approx(own_loss, rel=1e-6 if family == "gpt2" else 1e-12)  # the causal one in fp32
    gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
    floor = 1e-12 * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-12, atol=floor, msg=lambda m, n=name: f"{n}: {m}"
        )


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operator gives."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.num_elements = max([self.num_elements, *sizes])
        return result


def test_logits_of_all_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal: nearly every token predicts. With chunks, queries, keys and values are the largest tensor of a step."""
    model, config, objective, rows = parts("gpt2")
    (batch,) = objective.prepare(rows, 1)
    num_tokens = batch.input_ids.numel()
    largest = []
    for chunk_bytes in (2 << 10, 24 << 20):
        monkeypatch.setitem(head_loss._CHUNK_BYTES, "cpu", chunk_bytes)
        with LargestTensor() as seen:
            batch_loss(model, batch).backward()
        largest.append(seen.num_elements)
    assert largest[0] == num_tokens * 3 * config.hidden_size
    assert largest[1] >= len(batch.labels) * VOCAB_SIZE > largest[0]  # all at once would have been seen


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_micro_batches_add_up(family: Family) -> None:
    model, _, objective, rows = parts(family)
    model.double()
    whole, quarters = (sum(batch_loss(model, batch) for batch in objective.prepare(rows, n)) for n in (1, 4))
    torch.testing.assert_close(quarters, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_step_repeats_bit_by_bit_on_several_threads(family: Family) -> None:
    """Dropout included: it follows torch's generator, which the trainer seeds for every micro-batch."""
    config = ModelConfig(
        family=family,
        hidden_size=64,
        num_layers=1,
        num_heads=2,
        intermediate_size=128,
        max_positions=128,
        attention_dropout=0.1,
    )
    row_format = gpt_format(128) if family == "gpt2" else bert_format(128)
    objective_config = ObjectiveConfig(name="clm" if family == "gpt2" else "mlm")
    objective = make_objective(objective_config, VOCABULARY, row_format, 3, packing="best_fit")
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0)
    (batch,) = objective.prepare(make_rows([[128], [60, 60], [20, 30, 40]], row_format), 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(2):
            model.zero_grad()
            torch.manual_seed(1)
            batch_loss(model, batch).backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    finally:
        torch.set_num_threads(threads)
    assert gradients[0].abs().max() > 0
    assert torch.equal(gradients[0], gradients[1])


def test_an_untrained_model_knows_as_little_as_chance() -> None:
    model, _, objective, rows = parts("bert")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    (batch,) = objective.prepare(rows, 1)
    mean = batch_loss(model, batch) / batch.window_predictions
    assert mean.item() == pytest.approx(torch.tensor(VOCAB_SIZE).log().item(), rel=1e-6)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_under_bf16_autocast_the_sum_is_fp32_and_close(family: Family) -> None:
    model, _, objective, rows = parts(family)
    (batch,) = objective.prepare(rows, 1)
    exact = batch_loss(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum = batch_loss(model, batch)
    assert exact.dtype == loss_sum.dtype == torch.float32
    assert loss_sum.item() == pytest.approx(exact.item(), rel=0.02)
    loss_sum.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.get_input_embeddings().weight.grad.abs().max() > 0


def test_a_batch_without_predictions_has_loss_zero() -> None:
    model, _, objective, _ = parts("bert")
    (batch,) = objective.prepare(make_rows([[3], [3]], bert_format(24)), 1)
    assert int(batch.window_predictions) == 0
    loss_sum = batch_loss(model, batch)
    loss_sum.backward()
    assert loss_sum.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
