"""Rows made by hand, without planner or corpus."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.data.rows import RowFormat, Rows

VOCAB_SIZE = 200
SPECIAL_IDS = {"pad": 0, "cls": 2, "sep": 3, "mask": 4, "bos": None, "eos": 150, "unk": 1}
ALL_SPECIAL_IDS = [0, 1, 2, 3, 4, 150]
VOCABULARY = SimpleNamespace(vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, all_special_ids=ALL_SPECIAL_IDS)


def bert_format(sequence_length: int) -> RowFormat:
    return RowFormat(sequence_length, (2,), (3,), 0, end_only_at_document_end=False)


def gpt_format(sequence_length: int) -> RowFormat:
    return RowFormat(sequence_length, (), (150,), 150, end_only_at_document_end=True)


def make_rows(
    lengths: list[list[int]], row_format: RowFormat, *, first_row: int = 0, seed: int = 0, **changes: Any
) -> Rows:
    """Rows whose segments have the given lengths, special tokens included; some text ids are special too."""
    generator = np.random.default_rng(seed)
    size = row_format.sequence_length
    tokens = np.full((len(lengths), size), row_format.pad_id, np.int64)
    row, start, length = [], [], []
    for number, in_row in enumerate(lengths):
        begin = 0
        for segment in in_row:
            text = generator.integers(1, VOCAB_SIZE, segment)
            text[: len(row_format.begin_ids)] = row_format.begin_ids
            text[segment - len(row_format.end_ids) :] = row_format.end_ids
            tokens[number, begin : begin + segment] = text
            row.append(number)
            start.append(begin)
            length.append(segment)
            begin += segment
    num_rows, num_segments = len(lengths), len(row)
    fields: dict[str, Any] = {
        "tokens": tokens,
        "row_numbers": np.arange(first_row, first_row + num_rows),
        "segment_row": np.array(row, np.int32),
        "segment_start": np.array(start, np.int32),
        "segment_length": np.array(length, np.int32),
        "document": np.arange(num_segments),
        "offset": np.zeros(num_segments, np.int64),
        "epoch": np.zeros(num_rows, np.int64),
        "shard": np.zeros(num_rows, np.int32),
        "source": np.zeros(num_rows, np.int32),
    }
    return Rows(**{**fields, **changes})
