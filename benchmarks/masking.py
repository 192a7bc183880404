"""Masking alone: our corruption of rows that are in memory, against the collator's on the same rows.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.batches import VOCABULARY, tokenizer_file
from benchmarks.corpus import MeasuredCorpus
from benchmarks.engine import BATCH_ROWS, objective_of, open_rows, rows_in_order
from benchmarks.machine import interleaved, medians
from benchmarks.peers.peer import SPECIAL_IDS, make_collator
from benchmarks.record import Goal, Result


def measure_masking(corpus: MeasuredCorpus, repetitions: int, batches: int) -> Result:
    """Ours: exact counts, keyed by row. The collator: its call on a list of tensors, and its masking functions alone,
    with the rows stacked and the special tokens known beforehand. All at 15 %, 80/10/10."""
    stream = open_rows(corpus.directory)
    objective = objective_of(stream)
    rows = list(rows_in_order(stream, batches))
    num_tokens = sum(int(part.segment_length.sum()) for part in rows)
    stacked = [
        torch.from_numpy(tokens.astype(np.int64))  # R S
        for part in rows
        for tokens in np.split(part.tokens, len(part.tokens) // BATCH_ROWS)
    ]
    special = [torch.isin(tokens, torch.tensor(SPECIAL_IDS)) for tokens in stacked]
    collator = make_collator(tokenizer_file(), VOCABULARY)
    numpy_batches = list(zip((tokens.numpy() for tokens in stacked), (mask.numpy() for mask in special), strict=True))

    def timed(mask_all: Callable[[], None]) -> Callable[[], float]:
        def million_a_second() -> float:
            before = time.perf_counter()
            mask_all()
            return num_tokens / (time.perf_counter() - before) / 1e6

        return million_a_second

    def ours() -> None:
        for part in rows:
            objective.predictions(part)

    def call() -> None:
        for tokens in stacked[:8]:
            collator(list(tokens))

    def with_torch() -> None:
        for tokens, mask in zip(stacked, special, strict=True):
            collator.torch_mask_tokens(tokens.clone(), special_tokens_mask=mask)

    def with_numpy() -> None:
        for tokens, mask in numpy_batches:
            collator.numpy_mask_tokens(tokens.copy(), special_tokens_mask=mask)

    whole_call = timed(call)
    contenders = {
        "ours": timed(ours),
        "DataCollatorForLanguageModeling": lambda: whole_call() * min(8, len(stacked)) / len(stacked),
        "its torch_mask_tokens alone": timed(with_torch),
        "its numpy_mask_tokens alone": timed(with_numpy),
    }
    _check_counts(rows[0].tokens, objective.predictions(rows[0]).indices)
    found = medians(interleaved(contenders, repetitions, "masking"))
    return Result("masking", "million tokens/s", "higher", found.pop("ours"), found, Goal(ours=130.0))


def _check_counts(tokens: np.ndarray, indices: np.ndarray) -> None:
    """Exactly round(0.15 x maskable) predictions in every row, none at a special token."""
    is_special = np.isin(tokens, SPECIAL_IDS)
    counts = np.bincount(indices // tokens.shape[1], minlength=len(tokens))
    assert np.array_equal(counts, np.floor(0.15 * (~is_special).sum(1) + 0.5))
    assert not is_special.ravel()[indices].any()
