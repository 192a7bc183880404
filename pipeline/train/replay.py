"""`pretrain batch`: the global batch of a step, without a model, from the config and the corpus alone.

Letters: R rows, S sequence length, K segments.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.data.digest import combine_row_digests, row_digests
from pipeline.data.rows import Rows
from pipeline.train.streams import open_streams
from pipeline.train.validation import IGNORED


@dataclass(frozen=True)
class Replayed:
    """A global batch: rows in the order of their numbers."""

    step: int
    world_size: int
    digest: str
    rows: Rows
    input_ids: NDArray[np.int64]  # (R, S)
    labels: NDArray[np.int64]  # (R, S)
    document_ids: list[str]  # (K,)
    tokenizer_file: Path

    def facts(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        rows = self.rows
        numbers = [int(number) for number in rows.row_numbers]
        segments = [
            {
                "row": numbers[int(row)],
                "document": name,
                "offset": int(offset),
                "start": int(start),
                "length": int(length),
                "shard": int(rows.shard[row]),
                "epoch": int(rows.epoch[row]),
            }
            for row, name, offset, start, length in zip(
                rows.segment_row, self.document_ids, rows.offset, rows.segment_start, rows.segment_length, strict=True
            )
        ]
        return {
            "step": self.step,
            "world_size": self.world_size,
            "digest": self.digest,
            "rows": len(numbers),
            "first_row": numbers[0],
            "real_tokens": int(rows.segment_length.sum()),
            "predictions": int((self.labels != IGNORED).sum()),
            "documents": sorted(set(self.document_ids)),
            "segments": segments,
        }


def replay_batch(config: RunConfig, step: int, world_size: int = 1) -> Replayed:
    """Assemble the batch of ``step`` (from 1) from the shares of ``world_size`` ranks.

    Raises:
        UserError: no such step, more ranks than rows, or anything wrong with the corpus.
    """
    if not 1 <= step <= config.train.steps:
        raise UserError(f"--step {step}: this run has steps 1 to {config.train.steps} (train.steps).")
    if not 1 <= world_size <= config.train.global_batch_size:
        raise UserError(
            f"--world-size {world_size}: 1 to {config.train.global_batch_size} ranks can share a batch "
            "(train.global_batch_size)."
        )
    streams = open_streams(config)
    objective = streams.objective(config.seed)
    shares = []
    for rank in range(world_size):
        rows = streams.train.rows(step - 1, rank, world_size)
        shares.append((rows, *objective.labels_of(rows), streams.train.document_ids(rows)))
    digests = [row_digests(rows, input_ids, labels) for rows, input_ids, labels, _ in shares]
    numbers = np.concatenate([rows.row_numbers for rows, *_ in shares])
    rows, order, segment_order = _in_row_order([rows for rows, *_ in shares])
    names = [name for *_, of_share in shares for name in of_share]
    return Replayed(
        step=step,
        world_size=world_size,
        digest=combine_row_digests(numbers, np.concatenate(digests)),
        rows=rows,
        input_ids=np.concatenate([ids for _, ids, _, _ in shares])[order],
        labels=np.concatenate([labels for _, _, labels, _ in shares])[order],
        document_ids=[names[index] for index in segment_order],
        tokenizer_file=Path(config.data.corpus) / "tokenizer" / "tokenizer.json",
    )


def _in_row_order(shares: list[Rows]) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """All ranks' rows as one, sorted by row number, and the orders of rows and segments that did it."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(rows, name) for rows in shares])

    numbers = joined("row_numbers")
    order = np.argsort(numbers, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first_rows = np.cumsum([0, *(len(rows.row_numbers) for rows in shares)])
    rows_of_segments = np.concatenate(
        [rows.segment_row + first for rows, first in zip(shares, first_rows, strict=False)]
    )
    segment_row = place[rows_of_segments]
    segment_order = np.lexsort((joined("segment_start"), segment_row))
    per_row = {name: joined(name)[order] for name in ("tokens", "row_numbers", "epoch", "shard", "source")}
    per_segment = {
        name: joined(name)[segment_order] for name in ("segment_start", "segment_length", "document", "offset")
    }
    segment_rows = segment_row[segment_order].astype(np.int32)
    return Rows(**per_row, segment_row=segment_rows, **per_segment), order, segment_order


def print_batch(replayed: Replayed, num_rows: int) -> None:
    """The batch for a person: its documents, and the text of the first rows with what is predicted in brackets."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(replayed.tokenizer_file))
    facts = replayed.facts()
    print(f"step {facts['step']}: {facts['rows']} rows from row {facts['first_row']}, digest {facts['digest']}")
    print(f"{facts['real_tokens']} tokens, {facts['predictions']} predicted, {len(facts['documents'])} documents")
    rows = replayed.rows
    for row in range(min(num_rows, facts["rows"])):
        print(f"\nrow {rows.row_numbers[row]} (epoch {rows.epoch[row]}, shard {rows.shard[row]})")
        for segment in np.flatnonzero(rows.segment_row == row):
            begin = int(rows.segment_start[segment])
            end = begin + int(rows.segment_length[segment])
            print(f"  {replayed.document_ids[segment]} from token {rows.offset[segment]}:")
            text = shown_text(tokenizer, replayed.input_ids[row, begin:end], replayed.labels[row, begin:end])
            print(f"    {text}")
    if num_rows < facts["rows"]:
        print(f"\n... {facts['rows'] - num_rows} more rows (--rows N, or --json for all segments)", file=sys.stderr)


def shown_text(tokenizer: Any, input_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> str:
    """Text of a segment; a corrupted token reads ``[MASK=word]``, ``[other=word]`` or, left as it is, ``[word=word]``.

    Next-token labels are the text itself, so nothing is marked for them.
    """
    following = np.append(input_ids[1:], IGNORED)
    causal = bool(np.all((labels == IGNORED) | (labels == following)))
    tokens = []
    for token_id, label in zip(input_ids.tolist(), labels.tolist(), strict=True):
        token = tokenizer.id_to_token(token_id) or "?"
        if label != IGNORED and not causal:
            token = (
                f"[{token.strip('[]<>') if token in ('[MASK]', '<mask>') else token}={tokenizer.id_to_token(label)}]"
            )
        tokens.append(token)
    text = tokenizer.decoder.decode(tokens) if tokenizer.decoder is not None else " ".join(tokens)
    return " ".join(text.split())
