"""Hugging Face's Trainer with what makes it fast: SDPA attention, fused AdamW, loader processes on a GPU, compilation.

Letters: R rows of a step, S sequence length, D documents.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.batches import VOCABULARY, tokenizer_file
from benchmarks.clock import StepClock
from benchmarks.peers.peer import SPECIAL_IDS, make_collator
from benchmarks.workload import LEARNING_RATE, Hardware

Example = dict[str, Any]


def missing_library() -> str | None:
    """Why the Trainer cannot run here; None if it can."""
    if importlib.util.find_spec("accelerate") is None:
        return "accelerate, which the Trainer needs, is not installed (`make benchmarks-setup`)"
    return None


@dataclass(frozen=True)
class TrainerSettings:
    """Of one run of the Trainer."""

    num_rows: int
    """Examples a step (R)."""

    hardware: Hardware
    compile: bool = False
    loader_processes: int = 0
    in_order: bool = False
    """The examples in their order, not at random."""

    seed: int = 0
    """Decides that order."""


@dataclass
class TrainerRun:
    """What a run gave."""

    clock: StepClock
    losses: list[float] = field(default_factory=list)
    """Loss of every step, where asked for."""

    tokens: list[int] = field(default_factory=list)
    """Of every step, without padding; the loader may have been ahead. Empty where other processes load."""


class CountedTokens:
    """A collator that notes how many tokens each of its batches had before they were padded."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], tokens: list[int]) -> None:
        self.collate, self.tokens = collate, tokens

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        self.tokens.append(sum(len(example["input_ids"]) for example in examples))
        return self.collate(examples)


def run_trainer(
    model: Any,
    examples: Sequence[Example],
    collate: Callable[[list[Any]], dict[str, Any]],
    settings: TrainerSettings,
    num_steps: int,
    with_losses: bool = False,
) -> TrainerRun:
    """Train ``model`` for so many steps; AdamW, decay and clipping as ours, a constant learning rate.

    Args:
        with_losses: log every step, which waits for the device.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    run = TrainerRun(StepClock(settings.hardware.device))

    class Clock(TrainerCallback):
        """Ticks after every optimizer step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            run.clock.tick()

    with tempfile.TemporaryDirectory(prefix="pretrain-benchmark-") as directory:
        arguments = TrainingArguments(**_arguments(settings, directory, num_steps, with_losses))
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Examples(examples),
            data_collator=collate if settings.loader_processes else CountedTokens(collate, run.tokens),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)  # its lines on the terminal; the losses are kept all the same
        trainer.train()
        run.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return run


def _arguments(settings: TrainerSettings, directory: str, num_steps: int, with_losses: bool) -> dict[str, Any]:
    processes = settings.loader_processes
    return {
        "output_dir": directory,
        "seed": settings.seed,
        "max_steps": num_steps,
        "per_device_train_batch_size": settings.num_rows,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "use_cpu": settings.hardware.device == "cpu",
        "bf16": settings.hardware.precision == "bf16",
        "torch_compile": settings.compile,
        "dataloader_num_workers": processes,
        "dataloader_prefetch_factor": 4 if processes else None,
        "dataloader_pin_memory": settings.hardware.device == "cuda",
        "dataloader_drop_last": True,
        "train_sampling_strategy": "sequential" if settings.in_order else "random",
        "remove_unused_columns": False,
        "logging_strategy": "steps" if with_losses else "no",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


class _Examples:
    """Examples kept in memory: nothing to decode, faster than any file."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> Example:
        return self.examples[number]


def masked_examples(documents: Sequence[NDArray[np.integer]]) -> list[Example]:
    """Documents or rows for the collator, with the mask of special tokens that it would else look up itself."""
    special = list(SPECIAL_IDS)
    return [
        {"input_ids": tokens.tolist(), "special_tokens_mask": np.isin(tokens, special).astype(int).tolist()}
        for tokens in documents
    ]


def causal_examples(rows: NDArray[np.integer]) -> list[Example]:
    """Rows (R, S) whose labels are themselves, as `run_clm` makes them."""
    import torch

    tensors = torch.from_numpy(rows.astype(np.int64))
    return [{"input_ids": row, "labels": row} for row in tensors]


def masking_collator(vocab_size: int, pad_to_multiple_of: int | None = None) -> Any:
    """`DataCollatorForLanguageModeling`, 15 %, 80/10/10.

    Args:
        pad_to_multiple_of: S pads every document to S; None pads to the longest of the batch.
    """
    # It draws random tokens from its tokenizer's ids, so that must have as many as the model.
    collator = make_collator(tokenizer_file() if vocab_size == VOCABULARY else None, vocab_size)
    collator.pad_to_multiple_of = pad_to_multiple_of
    return collator


def stacking_collator() -> Any:
    """Examples that are ready: their tensors are stacked."""
    from transformers import default_data_collator

    return default_data_collator


def like_lengths(examples: Sequence[Example], num_rows: int, num_batches: int) -> list[Example]:
    """Batches of documents of like length, evenly drawn from the shortest to the longest.

    What `train_sampling_strategy="group_by_length"` gives on average, with every length in few steps.
    """
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    batches = [ordered[first : first + num_rows] for first in range(0, len(ordered) - num_rows + 1, num_rows)]
    chosen = np.linspace(0, len(batches) - 1, num_batches).round().astype(int).tolist()
    return [example for number in chosen for example in batches[number]]
