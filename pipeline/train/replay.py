"""`pretrain batch`: the global batch of a step, without a model, from the config and the corpus alone.

Letters: R rows, S sequence length, K segments.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.derived import row_objective
from pipeline.config.objective import TaskConfig
from pipeline.config.run import RunConfig
from pipeline.config.stages import stages_of
from pipeline.data.digest import combine_row_digests, row_digests
from pipeline.data.gather import join_rows, sorted_rows
from pipeline.data.rows import Rows
from pipeline.objectives.denoise import Denoising
from pipeline.objectives.predictions import KEPT
from pipeline.train.streams import open_streams


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
    second_document_ids: list[str] | None  # pairs: (K,), empty where a segment has no second part
    is_reverse: NDArray[np.bool_]  # (R,): whether a row is the reverse complement of its text
    corpora: list[str]  # (C,)
    tokenizer_file: Path
    objective: str  # its name, or its label in a mixture
    is_of_mixture: bool
    is_causal: bool  # labels are the text itself
    noisy_ids: NDArray[np.int64] | None  # denoising: what the encoder reads (R, S); input_ids are the decoder's
    pad_id: int

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
                "corpus": self.corpora[int(rows.source[row])],
                "shard": int(rows.shard[row]),
                "epoch": int(rows.epoch[row]),
            }
            for row, name, offset, start, length in zip(
                rows.segment_row, self.document_ids, rows.offset, rows.segment_start, rows.segment_length, strict=True
            )
        ]
        for number, second in self.second_parts():
            segments[number]["second_part"] = second
        for segment, row in zip(segments, rows.segment_row.tolist(), strict=True):
            if self.is_reverse[row]:
                segment["reverse_complement"] = True
        return {
            "step": self.step,
            "objective": self.objective,
            "world_size": self.world_size,
            "digest": self.digest,
            "rows": len(numbers),
            "first_row": numbers[0],
            "real_tokens": int(rows.segment_length.sum()),
            "predictions": int((self.labels != KEPT).sum()),
            "documents": sorted({*self.document_ids, *(self.second_document_ids or ())} - {""}),
            "segments": segments,
        }

    def second_parts(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Pairs: number of a segment and what its second part is."""
        rows = self.rows
        if self.second_document_ids is None or rows.second_offset is None or rows.second_start is None:
            return
        columns = (self.second_document_ids, rows.second_offset.tolist(), rows.second_start.tolist())
        for number, (name, offset, start) in enumerate(zip(*columns, strict=True)):
            if name:
                yield number, {"document": name, "offset": offset, "start": start}


def replay_batch(config: RunConfig, step: int, world_size: int = 1) -> Replayed:
    """Assemble the batch of ``step`` (from 1) from the shares of ``world_size`` ranks.

    Raises:
        UserError: no such step, more ranks than rows, or anything wrong with the corpus.
    """
    if not 1 <= step <= config.train.steps:
        raise UserError(f"--step {step}: this run has steps 1 to {config.train.steps} (train.steps).")
    stage = stages_of(config).of_step(step - 1)
    if not 1 <= world_size <= stage.global_batch_size:
        raise UserError(
            f"--world-size {world_size}: 1 to {stage.global_batch_size} ranks can share a batch "
            "(train.global_batch_size)."
        )
    streams = open_streams(config)
    drawn = streams.objectives(config.seed, stage.sequence_length)
    number = drawn.number_of_step(step)
    objective, task = drawn.tasks[number], config.objective.tasks[number]
    shares = [streams.augmented(streams.train.rows(step - 1, rank, world_size)) for rank in range(world_size)]
    labelled = [objective.labels_of(rows) for rows in shares]
    digests = [row_digests(rows, *cells) for rows, cells in zip(shares, labelled, strict=True)]
    joined = join_rows(shares)
    rows, order = sorted_rows(joined)
    reverse = streams.reverse_complement
    is_noisy = isinstance(objective, Denoising)
    return Replayed(
        step=step,
        world_size=world_size,
        digest=combine_row_digests(joined.row_numbers, np.concatenate(digests)),
        rows=rows,
        input_ids=np.concatenate([ids for ids, _ in labelled])[order],
        labels=np.concatenate([labels for _, labels in labelled])[order],
        document_ids=streams.train.document_ids(rows),
        second_document_ids=None if rows.second_document is None else streams.train.second_document_ids(rows),
        is_reverse=np.zeros(len(order), np.bool_) if reverse is None else reverse.chosen(rows.row_numbers),
        corpora=[source.files.location for source in streams.sources],
        tokenizer_file=streams.sources[0].files.tokenizer_directory() / "tokenizer.json",
        objective=task.shown_label if isinstance(task, TaskConfig) else task.name,
        is_of_mixture=bool(config.objective.mixture),
        is_causal=row_objective(config, task).name == "clm",
        noisy_ids=objective.prepare(rows, 1)[0].input_ids.numpy() if is_noisy else None,
        pad_id=streams.train.format_of(stage.sequence_length).pad_id,
    )


def print_batch(replayed: Replayed, num_rows: int) -> None:
    """The batch for a person: its documents, and the text of the first rows with what is predicted in brackets."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(replayed.tokenizer_file))
    facts = replayed.facts()
    name = f" ({replayed.objective})" if replayed.is_of_mixture else ""
    print(f"step {facts['step']}{name}: {facts['rows']} rows from row {facts['first_row']}, digest {facts['digest']}")
    print(f"{facts['real_tokens']} tokens, {facts['predictions']} predicted, {len(facts['documents'])} documents")
    rows = replayed.rows
    second_parts = dict(replayed.second_parts())
    for row in range(min(num_rows, facts["rows"])):
        corpus = f" of {replayed.corpora[rows.source[row]]}" if len(replayed.corpora) > 1 else ""
        strand = ", reverse complement" if replayed.is_reverse[row] else ""
        print(f"\nrow {rows.row_numbers[row]} (epoch {rows.epoch[row]}, shard {rows.shard[row]}{corpus}){strand}")
        for segment in np.flatnonzero(rows.segment_row == row):
            begin = int(rows.segment_start[segment])
            end = begin + int(rows.segment_length[segment])
            second = second_parts.get(int(segment))
            then = "" if second is None else f", then {second['document']} from token {second['offset']}"
            print(f"  {replayed.document_ids[segment]} from token {rows.offset[segment]}{then}:")
            for line in _shown_segment(replayed, tokenizer, row, slice(begin, end)):
                print(f"    {line}")
    if num_rows < facts["rows"]:
        print(f"\n... {facts['rows'] - num_rows} more rows (--rows N, or --json for all segments)", file=sys.stderr)


def _shown_segment(replayed: Replayed, tokenizer: Any, row: int, own: slice) -> Iterator[str]:
    labels = replayed.labels[row, own]
    if replayed.noisy_ids is None:
        yield shown_text(tokenizer, replayed.input_ids[row, own], labels, replayed.is_causal)
        return
    noisy = replayed.noisy_ids[row, own]  # never longer than the text; what it leaves is padding
    nothing = np.full(len(noisy), KEPT, np.int64)
    real = noisy != replayed.pad_id
    yield f"noisy: {shown_text(tokenizer, noisy[real], nothing[real])}"
    target = labels[labels != KEPT]
    yield f"target: {shown_text(tokenizer, target, nothing[: len(target)])}"


def shown_text(tokenizer: Any, input_ids: NDArray[np.int64], labels: NDArray[np.int64], is_causal: bool = False) -> str:
    """Text of a segment; a corrupted token reads ``[MASK=word]``, ``[other=word]`` or, left as it is, ``[word=word]``.

    Args:
        is_causal: the labels are the text itself, so nothing is marked for them.
    """
    tokens = []
    for token_id, label in zip(input_ids.tolist(), labels.tolist(), strict=True):
        token = tokenizer.id_to_token(token_id) or "?"
        if label != KEPT and not is_causal:
            token = (
                f"[{token.strip('[]<>') if token in ('[MASK]', '<mask>') else token}={tokenizer.id_to_token(label)}]"
            )
        tokens.append(token)
    text = tokenizer.decoder.decode(tokens) if tokenizer.decoder is not None else " ".join(tokens)
    return " ".join(text.split())
