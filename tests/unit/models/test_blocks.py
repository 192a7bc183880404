"""Activation checkpointing: the same gradients to the bit, less kept, and what is not kept is computed again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.run import ActivationCheckpointing, Family
from pipeline.models.blocks import _KEPT_OPERATORS, checkpoint_activations, transformer_blocks
from pipeline.models.build import build_model
from pipeline.objectives.loss import packed_loss_sum
from tests.unit.models.packing_cases import FAMILIES, SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

CASE = PackedCase([[7, 12, 5], [20]])
LABELLED = CASE.padded_predictions(48)


def checkpointed_model(family: Family, kept: ActivationCheckpointing, **shape: int) -> Any:
    config = tiny_config(family, hidden_dropout=0.3, attention_dropout=0.2, **shape)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0)
    checkpoint_activations(model, kept)
    return model


def forward(model: Any, loss_sum: Any = packed_loss_sum) -> torch.Tensor:
    torch.manual_seed(1)
    rows = (CASE.input_ids.view(2, 32), CASE.position_ids.view(2, 32), CASE.cu_seqlens)
    return loss_sum(model, *rows, *LABELLED, 32)


def gradients(model: Any, loss_sum: Any = packed_loss_sum) -> list[torch.Tensor]:
    """The loss and all gradients, with dropout."""
    model.zero_grad()
    loss = forward(model, loss_sum)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("kept", ["full", "selective"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_to_the_bit(family: Family, kept: ActivationCheckpointing) -> None:
    model = checkpointed_model(family, kept)
    expected = gradients(checkpointed_model(family, "none"))
    for ours in (gradients(model), gradients(copy.deepcopy(model))):
        assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


class _KeptBytes(TorchDispatchMode):
    """Bytes of the results that `selective` keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = operator(*arguments, **(keywords or {}))
        if operator.name().split(".")[0] in _KEPT_OPERATORS:
            tensors = result if isinstance(result, tuple) else (result,)
            self.num_bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def bytes_for_backward(family: Family, kept: ActivationCheckpointing) -> int:
    """What autograd saves in a forward pass, and what `selective` keeps beside it."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = checkpointed_model(family, kept, num_layers=4, intermediate_size=4 * 24)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _KeptBytes() as results:
        loss = forward(model)
    assert loss.requires_grad  # alive until here, so that no saved memory was given to another tensor
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    return activations + (results.num_bytes if kept == "selective" else 0)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_less_is_kept(family: Family) -> None:
    none, full, selective = (bytes_for_backward(family, kept) for kept in ("none", "full", "selective"))
    assert full < 0.4 * none
    assert full < selective < 0.85 * none


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_is_computed_again(family: Family) -> None:
    """`full`: another forward pass of the blocks. `selective`: no matrix product and no attention."""
    flops = {}
    for kept in ("none", "full", "selective"):
        model = checkpointed_model(family, kept)
        with FlopCounterMode(display=False) as counter:
            gradients(model)
        flops[kept] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        forward(checkpointed_model(family, "none"))
    blocks = sum(
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name.split(".")[-2:-1] in (["layer"], ["h"])
    )
    assert blocks > 0
    assert flops["full"] == flops["none"] + blocks
    assert flops["selective"] == flops["none"]


@pytest.mark.parametrize("kept", ["full", "selective"])
def test_a_compiled_graph_is_the_same(kept: ActivationCheckpointing) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(packed_loss_sum, fullgraph=True, dynamic=False, backend="aot_eager")
    expected = gradients(checkpointed_model("bert", "none"))
    with torch._dynamo.config.patch(error_on_recompile=True):
        model = checkpointed_model("bert", kept)
        for _ in range(2):
            for one, other in zip(gradients(model, compiled), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_evaluation_keeps_nothing_to_compute_again() -> None:
    model = checkpointed_model("bert", "full").eval()
    assert torch.equal(forward(model), forward(checkpointed_model("bert", "none").eval()))
    (block, _) = transformer_blocks(model)
    assert block.forward.__self__.block is block
