"""Denoising (Lewis et al. 2020, "BART"): the decoder writes the clean text of what the encoder reads with noise.

A segment of the decoder is the clean one, shifted by one: it begins with the token that ends a text. A segment of the
encoder begins in the same slot and is never longer; the slots that it leaves are padding.

Where only the masked span is predicted (Song et al. 2019, "MASS"), the decoder reads the tokens of the span and mask
tokens for all others.

Letters: R rows, S sequence length, T their slots.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.jit import kernel
from pipeline.config.objective import ObjectiveConfig
from pipeline.data.rows import RowFormat, Rows
from pipeline.objectives.batch import Batch
from pipeline.objectives.layout import Capacity
from pipeline.objectives.noise import Noise, add_noise, make_noise, masked_span
from pipeline.objectives.objective import Objective, Vocabulary
from pipeline.objectives.predictions import Predictions
from pipeline.objectives.seq2seq_loss import seq2seq_loss


class Denoising(Objective):
    """Every token of a segment, or those of its masked span, are predicted from the noisy segment and the clean tokens
    before them (in the span)."""

    name = "denoise"
    row_kind = "bert"
    loss = seq2seq_loss("denoise")

    def __init__(
        self, noise: Noise, row_format: RowFormat, start_id: int, capacity: Capacity, only_span: bool = False
    ) -> None:
        super().__init__(capacity)
        self.start_id = start_id
        self.noise = noise
        self.only_span = only_span
        self.row_format = row_format
        self.needs_sentences = noise.permute > 0

    @classmethod
    def of(
        cls, config: ObjectiveConfig, vocabulary: Vocabulary, row_format: RowFormat, seed: int, segments_per_row: int
    ) -> Self:
        mask_id = vocabulary.special_ids.get("mask")
        if mask_id is None:
            raise UserError(
                "objective.name: denoise needs a mask token and the tokenizer of the corpus has none: build the corpus "
                "with a tokenizer of style roberta or bert."
            )
        noise = make_noise(
            seed,
            mask_id,
            permute=config.permute_sentences,
            delete=config.deletion_rate,
            mask=config.token_mask_rate,
            infill=config.infilling_rate,
            mean=config.infilling_mean,
            rotate=config.rotation,
            span=config.span_mask_rate,
            mask_share=config.mask_token_share,
            random_share=config.random_token_share,
            ordinary_ids=np.setdiff1d(np.arange(vocabulary.vocab_size), list(vocabulary.all_special_ids)),
        )
        end = vocabulary.special_ids.get("eos")
        start_id = row_format.end_ids[0] if end is None else end  # as the model's decoder_start_token_id
        most = length = row_format.sequence_length
        only_span = config.predict == "masked"
        if only_span:  # of n tokens at most rate * n + 1 are masked
            most = min(length, int(config.span_mask_rate * length) + segments_per_row)
        return cls(noise, row_format, start_id, Capacity(most, segments_per_row), only_span)

    def predictions(self, rows: Rows) -> Predictions:
        """Of the decoder: its inputs, and the clean tokens."""
        tokens = rows.tokens.astype(np.int64)
        inputs = np.full(tokens.shape, self.row_format.pad_id, np.int64)
        real = np.zeros(tokens.shape, np.bool_)
        segments = (rows.segment_row, rows.segment_start, rows.segment_length)
        _shift(segments, tokens, self.start_id, inputs, real)
        if self.only_span:
            special = (len(self.row_format.begin_ids), len(self.row_format.end_ids))
            _keep_spans(segments, rows.row_numbers, special, self.noise, inputs, real)
        return Predictions(inputs, np.flatnonzero(real), tokens[real], real.sum(1, dtype=np.int64))

    def prepare_steps(
        self, rows: Rows, num_micro_batches: int, steps: Sequence[int], digested: Collection[int] = ()
    ) -> list[list[Batch]]:
        batches = super().prepare_steps(rows, num_micro_batches, steps)
        first = 0
        completed: list[list[Batch]] = []
        for of_step in batches:
            completed.append([])
            for batch in of_step:
                size = len(batch.row_numbers)
                completed[-1].append(self._with_encoder(batch, rows, first))
                first += size
        if digested:  # of what the encoder reads, which the noise is in; the decoder's inputs follow from the labels
            noisy = torch.cat([batch.input_ids for of_step in completed for batch in of_step]).numpy()
            self._digest(completed, rows, steps, digested, (noisy, self._dense(self.predictions(rows))[1]))
        return completed

    def labels_of(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What the encoder reads (R, S) and, at every position of the decoder that predicts, the id it is to predict;
        -100 elsewhere (R, S)."""
        (batch,) = self.prepare(rows, 1)
        return batch.input_ids.numpy(), self._dense(self.predictions(rows))[1]

    def _with_encoder(self, batch: Batch, rows: Rows, first_row: int) -> Batch:
        """The micro-batch of rows from ``first_row`` on; what it had so far is the decoder's."""
        num_rows, length = batch.input_ids.shape
        own = slice(*np.searchsorted(rows.segment_row, [first_row, first_row + num_rows]))
        ids = np.empty(num_rows * length, np.int64)
        positions = np.empty(num_rows * length, np.int64)
        bounds, decoder_bounds = (np.empty(2 * len(batch.cu_seqlens) - 1, np.int32) for _ in range(2))
        starts = rows.sentence_starts
        marked = self.marks_padding
        counts = _lay_out_encoder(
            rows.tokens[first_row : first_row + num_rows],
            np.empty((num_rows, 0), np.bool_) if starts is None else starts[first_row : first_row + num_rows],
            (rows.segment_row[own] - first_row, rows.segment_start[own], rows.segment_length[own]),
            rows.row_numbers[first_row : first_row + num_rows],
            (len(self.row_format.begin_ids), len(self.row_format.end_ids), self.row_format.pad_id),
            self.noise,
            batch.cu_seqlens.numpy(),
            ids,
            positions,
            bounds,
            decoder_bounds,
        )
        return replace(
            batch,
            input_ids=torch.from_numpy(ids).view(num_rows, length),
            position_ids=torch.from_numpy(positions).view(num_rows, length),
            cu_seqlens=torch.from_numpy(bounds),
            decoder_input_ids=batch.input_ids,
            decoder_position_ids=batch.position_ids,
            decoder_cu_seqlens=torch.from_numpy(decoder_bounds),
            is_real=torch.from_numpy(ids != self.row_format.pad_id).view(num_rows, length) if marked else None,
            decoder_is_real=batch.is_real,
            num_encoder_tokens=int(counts[0]),
            sum_squared_encoder_lengths=int(counts[1]),
            sum_cross_products=int(counts[2]),
        )


_Segments: TypeAlias = tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]


@kernel
def _shift(
    segments: _Segments,
    tokens: NDArray[np.int64],
    start_id: int,
    inputs: NDArray[np.int64],
    real: NDArray[np.bool_],
) -> None:
    """Fill the last two: the tokens of every segment one place later, and where segments are."""
    of_row, starts, lengths = segments
    for segment in range(len(of_row)):
        row, start = int(of_row[segment]), int(starts[segment])
        inputs[row, start] = start_id
        for place in range(start, start + int(lengths[segment])):
            real[row, place] = True
            if place > start:
                inputs[row, place] = tokens[row, place - 1]


@kernel
def _keep_spans(
    segments: _Segments,
    row_numbers: NDArray[np.int64],
    special: tuple[int, int],
    noise: Noise,
    inputs: NDArray[np.int64],
    predicted: NDArray[np.bool_],
) -> None:
    """Change the last two: mask tokens in place of what stands outside of the masked spans (but for a segment's first
    input, which is no token of it), and nothing is predicted there."""
    of_row, starts, lengths = segments
    num_begin, num_end = special
    for segment in range(len(of_row)):
        row, start, end = int(of_row[segment]), int(starts[segment]), int(starts[segment]) + int(lengths[segment])
        size = max(end - start - num_begin - num_end, 0)
        begin = behind = 0
        if size > 0:
            begin, behind = masked_span(size, (int(row_numbers[row]) << 16) + start, noise)
        begin, behind = start + num_begin + begin, start + num_begin + behind
        for place in range(start, end):
            predicted[row, place] = begin <= place < behind
            if place > start and not begin <= place - 1 < behind:
                inputs[row, place] = noise.mask_id


@kernel
def _lay_out_encoder(
    tokens: NDArray[np.unsignedinteger],
    sentence_starts: NDArray[np.bool_],
    segments: _Segments,
    row_numbers: NDArray[np.int64],
    special: tuple[int, int, int],
    noise: Noise,
    runs: NDArray[np.int32],
    ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    bounds: NDArray[np.int32],
    decoder_bounds: NDArray[np.int32],
) -> tuple[int, int, int]:
    """Fill the last four: every noisy segment where the clean one begins, positions in it, and the segments of both
    sides.

    Every run of slots (a segment, or padding) makes two segments: of the encoder the noisy tokens and the slots that
    they leave, of the decoder the run and nothing. So those that attend to one another have the same number.

    Args:
        runs: starts of the runs, then T to the end.

    Returns:
        tokens; sum of their squared lengths; sum over the segments of the length times that of the clean segment.
    """
    of_row, starts, lengths = segments
    num_begin, num_end, pad_id = special
    length = tokens.shape[1]
    scratch = np.empty(length, np.int64)
    nothing = np.empty(0, np.bool_)
    total = segment = squares = products = 0
    for run in range(len(runs) - 1):
        begin, end = int(runs[run]), int(runs[run + 1])
        noisy = end - begin
        for slot in range(begin, end):
            ids[slot], positions[slot] = pad_id, slot - begin
        if end > begin and segment < len(of_row) and of_row[segment] * length + starts[segment] == begin:
            row, first, size = int(of_row[segment]), int(starts[segment]), int(lengths[segment])
            own = sentence_starts[row, first : first + size] if sentence_starts.shape[1] > 0 else nothing
            name = (int(row_numbers[row]) << 16) + first
            noisy = add_noise(tokens[row, first : first + size], own, num_begin, num_end, name, noise, scratch)
            for place in range(noisy):
                ids[begin + place] = scratch[place]
            for slot in range(begin + noisy, end):
                positions[slot] = slot - begin - noisy
            total += noisy
            squares += noisy * noisy
            products += noisy * size
            segment += 1
        bounds[2 * run], bounds[2 * run + 1] = begin, begin + noisy
        decoder_bounds[2 * run], decoder_bounds[2 * run + 1] = begin, end
    bounds[2 * (len(runs) - 1)] = decoder_bounds[2 * (len(runs) - 1)] = len(ids)
    return total, squares, products
