"""Before anything is timed: losses and gradients of packed rows against padded documents, in bf16 against fp32.

Letters: P parameters of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.equal_steps import IGNORED, padded_documents
from benchmarks.our_training import OurStep, stock_model
from benchmarks.record import Table, significant
from benchmarks.workload import Workload
from pipeline.config.run import PrecisionName
from pipeline.models.build import stock_state_dict
from pipeline.objectives.batch import Batch

_INITIALIZER_RANGE: Final = 0.1

LOSS_TOLERANCE: Final = {"fp32": 1e-4, "bf16": 1e-2}
GRADIENT_TOLERANCE: Final = {"fp32": 1e-3, "bf16": 5e-2}
"""Norm of the difference against the norm of the gradient. bf16 keeps 8 bits of a number: 0.4 % of it, many times."""


def check_numbers(
    workload: Workload, precisions: Sequence[PrecisionName] = ("fp32", "bf16"), compiled: bool = False
) -> list[list[str | float | int]]:
    """Compare one packed batch of ours with the stock class on its padded documents in fp32.

    Args:
        compiled: the last precision compiled too.

    Returns:
        rows of :data:`HEADER`.

    Raises:
        AssertionError: a loss or a gradient is further off than its numbers explain.
    """
    # Larger weights than a model begins with: else attention is almost even, and what it sees hardly matters.
    workload = replace(workload, shape=replace(workload.shape, initializer_range=_INITIALIZER_RANGE))
    exact = _in(workload, "fp32")
    batch = _first_batch(exact)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # fp32 means fp32: TF32 would keep 10 bits
    try:
        truth = _stock(exact, batch)
        rows = []
        for precision in precisions:
            found = _packed(_in(workload, precision), batch, compile=False)
            rows.append(_compared(workload.shape.family, precision, "packed", found, truth))
        if compiled:
            found = _packed(_in(workload, precision), batch, compile=True)
            rows.append(_compared(workload.shape.family, precision, "packed, compiled", found, truth))
        return rows
    finally:
        torch.set_float32_matmul_precision(before)


HEADER: Final = ["family", "numbers", "way", "loss", "loss of the padded documents", "gradient, relative difference"]


def as_table(rows: list[list[str | float | int]]) -> Table:
    """The findings of :func:`check_numbers` for some models."""
    return Table(HEADER, rows)


def _compared(
    family: str, precision: PrecisionName, way: str, found: tuple[float, Tensor], truth: tuple[float, Tensor]
) -> list[str | float | int]:
    (loss, gradient), (true_loss, true_gradient) = found, truth
    difference = float((gradient - true_gradient).norm() / true_gradient.norm())
    name = f"{family}, {way}, {precision}"
    assert abs(loss - true_loss) <= LOSS_TOLERANCE[precision] * true_loss, (
        f"{name}: the loss is {loss}, not {true_loss}"
    )
    assert difference <= GRADIENT_TOLERANCE[precision], f"{name}: the gradient is off by {difference:.2g}"
    return [family, precision, way, significant(loss, 6), significant(true_loss, 6), significant(difference, 2)]


def _in(workload: Workload, precision: PrecisionName) -> Workload:
    return replace(workload, hardware=replace(workload.hardware, precision=precision))


def _first_batch(workload: Workload) -> Batch:
    step = OurStep(workload.config())
    try:
        return next(step.batches)
    finally:
        step.close()


def _packed(workload: Workload, batch: Batch, **switches: Any) -> tuple[float, Tensor]:
    step = OurStep(workload.config(matmul_precision="highest", **switches))
    step.close()
    loss = step.loss_sum(batch.to(step.device)) / int(batch.num_predictions)
    loss.backward()
    return loss.item(), _gradient(step.module.model)


def _stock(workload: Workload, batch: Batch) -> tuple[float, Tensor]:
    device = workload.hardware.device
    model = stock_model(workload, "sdpa").to(device)
    documents = {name: tensor.to(device) for name, tensor in padded_documents(batch).items()}
    labels = documents.pop("labels")
    logits = model(**documents).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    loss.backward()
    return loss.item(), _gradient(model)


def _gradient(model: Any) -> Tensor:
    """All gradients in the order of their Hugging Face names, (P,), fp32 on the CPU."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    named = sorted(stock_state_dict(model, gradients).items())
    return torch.cat([gradient.float().cpu().flatten() for _, gradient in named])
