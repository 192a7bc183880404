"""Packed rows as the stock classes take them: a rectangle with one segment a row. Letters: R rows, S sequence length,
N segments, W the longest."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.data.rows import Rows


def pad_segments(rows: Rows, values: Tensor, fill: int) -> Tensor:
    """What ``values`` (R, S) holds of every segment, filled up with ``fill``, (N, W)."""
    segments = zip(rows.segment_row.tolist(), rows.segment_start.tolist(), rows.segment_length.tolist(), strict=True)
    parts = [values[row, start : start + length] for row, start, length in segments]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)


def attention_mask(rows: Rows) -> Tensor:
    """1 at the tokens of a segment, 0 behind it, (N, W)."""
    return pad_segments(rows, torch.ones(rows.tokens.shape, dtype=torch.int64), 0)


def token_types(rows: Rows) -> Tensor:
    """Of rows of pairs: 1 from the beginning of a segment's second part on, 0 in padding, (N, W)."""
    assert rows.second_start is not None
    places = torch.arange(rows.tokens.shape[1]).repeat(len(rows.tokens), 1)  # R S
    of_segment = pad_segments(rows, places, -1)
    return (of_segment >= torch.from_numpy(rows.second_start).long()[:, None]).long()
