"""Before anything is timed: both sides compute the same losses from the same weights on the same tokens.

Letters: R rows, S sequence length, P predictions, D documents, T tokens of the longest document.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.our_training import OurStep, losses_of_first_steps, stock_model
from benchmarks.peers import hf_trainer
from benchmarks.peers.plain_gpt import IGNORED, PlainGpt, PlainLoop, load_gpt2
from benchmarks.workload import Workload
from pipeline.objectives.batch import Batch

NUM_STEPS = 3


def dense(batch: Batch) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch, int64 (R, S) both; -100 where nothing is predicted."""
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels.view(-1)[batch.prediction_positions] = batch.labels  # no position comes twice
    return batch.input_ids, labels


def padded_documents(batch: Batch) -> dict[str, Tensor]:
    """The segments of a packed batch as padded documents with an attention mask, all (D, T)."""
    inputs, labels = (tensor.view(-1) for tensor in dense(batch))
    bounds = batch.cu_seqlens.unique().tolist()
    # A run of padding is a segment too, and holds nothing that is predicted.
    spans = [slice(start, end) for start, end in pairwise(bounds)]
    spans = [span for span in spans if (labels[span] != IGNORED).any()]
    longest = max(span.stop - span.start for span in spans)

    def stacked(values: Tensor, fill: int) -> Tensor:
        padding = [torch.full((longest - (span.stop - span.start),), fill) for span in spans]
        return torch.stack([torch.cat([values[span], tail]) for span, tail in zip(spans, padding, strict=True)])

    return {
        "input_ids": stacked(inputs, 0),
        "labels": stacked(labels, IGNORED),
        "attention_mask": stacked(torch.ones_like(inputs), 0),
    }


def assert_same_training(workload: Workload, with_trainer: bool, tolerance: float = 2e-4) -> list[float]:
    """Losses of the first steps: ours, the Trainer's, and for a causal model the plain loop's.

    For BERT a document a row, which the Trainer gets padded; for GPT full rows with attention across documents.

    Returns:
        our losses.

    Raises:
        AssertionError: they differ.
    """
    causal = workload.shape.is_causal
    config = replace(workload, same_rows=causal).config()
    if not causal:
        config = replace(config, data=replace(config.data, packing="one_document"))
    ours = losses_of_first_steps(config, NUM_STEPS)
    step = OurStep(config)
    batches = list(islice(step.batches, NUM_STEPS))
    step.close()
    if with_trainer:
        examples = [example for batch in batches for example in _examples(batch, causal)]
        settings = hf_trainer.TrainerSettings(workload.num_rows, workload.hardware, in_order=True)
        run = hf_trainer.run_trainer(
            stock_model(workload, "sdpa"),
            examples,
            hf_trainer.stacking_collator(),
            settings,
            NUM_STEPS,
            with_losses=True,
        )
        _assert_all_near("the Trainer", ours, run.losses, tolerance)
    if causal:
        _assert_all_near("the plain loop", ours, _losses_of_plain_loop(workload, batches), tolerance)
    return ours


def _examples(batch: Batch, causal: bool) -> list[dict[str, Any]]:
    inputs, labels = dense(batch)
    if causal:
        # Labels stand where the token does; the first token is never predicted, nor is padding.
        shifted = torch.cat([torch.full_like(labels[:, :1], IGNORED), labels[:, :-1]], 1)
        return [{"input_ids": row, "labels": label} for row, label in zip(inputs, shifted, strict=True)]
    lengths = [int(row.nonzero().max()) + 1 for row in inputs]  # the padding is 0 and stands at the end
    masks = [(torch.arange(len(row)) < length).long() for row, length in zip(inputs, lengths, strict=True)]
    return [
        {"input_ids": row, "labels": label, "attention_mask": mask}
        for row, label, mask in zip(inputs, labels, masks, strict=True)
    ]


def _losses_of_plain_loop(workload: Workload, batches: list[Batch]) -> list[float]:
    model = PlainGpt(workload.shape, workload.shape.vocab_size)
    load_gpt2(model, stock_model(workload, "sdpa").state_dict())
    tokens = np.zeros(2 * workload.shape.sequence_length + 2, np.int64)  # for its windows, which are not asked for
    loop = PlainLoop(model, tokens, workload.num_rows, workload.hardware, compiled=False)
    return [float(loop.step(*(tensor.to(loop.device) for tensor in dense(batch)))) for batch in batches]


def _assert_all_near(name: str, ours: list[float], theirs: list[float], tolerance: float) -> None:
    assert len(ours) == len(theirs) == NUM_STEPS, f"{name} logged {len(theirs)} losses"
    for number, pair in enumerate(zip(ours, theirs, strict=True), 1):
        _assert_near(f"the loss of step {number} of ours and of {name}", *pair, tolerance)


def _assert_near(what: str, ours: float, theirs: float, tolerance: float) -> None:
    assert abs(ours - theirs) <= tolerance * abs(theirs), f"{what} differ: {ours} and {theirs}"
