"""Masks that belong to the tokens of documents instead of to rows: the same whenever a document is read, or in turn.

Rows differ from epoch to epoch, so what is to stay the same cannot be drawn for a row. A token (with whole words: a
word, by its first token) is predicted if the hash of (seed, copy, document, token in the document) falls below the
rate, and all that replaces it is drawn from hashes of the same names. The copy is the epoch modulo the number of
copies: with one copy masks never change (BERT's data were masked once for all), with ten they come back every ten
epochs (RoBERTa's "static" baseline, Liu et al. 2019, section 4.1). The number of predictions of a row is binomial.

Letters: R rows, S sequence length, K segments, T parts of segments, N runs of special ids, P predictions.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.keyed_kernels import hash_u64
from pipeline.config.objective import ObjectiveConfig
from pipeline.data.rows import Rows
from pipeline.objectives.masking import MaskingSettings, find_maskable, require_words, threshold
from pipeline.objectives.predictions import Predictions

_DEVIATIONS: Final = 5
_WORD_FACTOR: Final = 2
"""Words of four tokens each double the standard deviation."""


def most_static_predictions(sequence_length: int, config: ObjectiveConfig) -> int:
    """Predictions of a row that are kept: the mean plus 5 standard deviations of a row without special tokens, at most
    all its tokens.

    With ``whole_word`` the deviation is that of words of four tokens.
    """
    rate = config.mask_rate
    deviation = math.sqrt(sequence_length * rate * (1 - rate))
    factor = _WORD_FACTOR if config.masking == "whole_word" else 1
    return min(sequence_length, math.ceil(sequence_length * rate + _DEVIATIONS * factor * deviation))


def corrupt_documents(rows: Rows, num_begin_ids: int, settings: MaskingSettings) -> Predictions:
    """Mask rows by the documents in them.

    What exceeds :func:`most_static_predictions` in a row is left out at the row's end, whole words at a time.

    Args:
        rows: R rows as planned, so that every segment names its document.
        num_begin_ids: special tokens before the first token of a segment.
        settings: with ``mask_copies`` and ``masking`` of ``token`` or ``whole_word``.

    Raises:
        UserError: words are to be masked and the rows do not say where they begin.
    """
    config, tokens = settings.config, rows.tokens
    assert config.mask_copies is not None
    by_word = config.masking == "whole_word"
    word_starts = require_words(rows.word_starts, config.masking)
    num_rows, length = tokens.shape
    most = most_static_predictions(length, config)
    corrupted = np.empty(tokens.shape, np.int64)
    indices, labels = np.empty(num_rows * most, np.int64), np.empty(num_rows * most, np.int64)
    counts = np.empty(num_rows, np.int64)
    total = _mask_rows(
        by_word,
        tokens,
        word_starts,
        _parts(rows, num_begin_ids),
        rows.epoch % config.mask_copies,
        settings.special_ranges.astype(tokens.dtype),
        settings.ordinary_ids,
        settings.mask_id,
        math.ceil(config.mask_rate * 2**32),
        (threshold(config.mask_token_share), threshold(config.mask_token_share + config.random_token_share)),
        settings.keys,
        most,
        corrupted,
        indices,
        labels,
        counts,
    )
    return Predictions(corrupted, indices[:total], labels[:total], counts)


def _parts(rows: Rows, num_begin_ids: int) -> NDArray[np.int64]:
    """Row, first slot, slot after the last, document and the first token's place in it, of every stretch of a document
    in a row, row after row, (T, 5); a pair is two, and the special tokens after a stretch count as of it."""
    ends = rows.segment_start.astype(np.int64) + rows.segment_length
    firsts = rows.segment_start.astype(np.int64) + num_begin_ids
    parts: list[tuple[NDArray[np.integer], ...]] = [(rows.segment_row, firsts, ends, rows.document, rows.offset)]
    if rows.second_start is not None and rows.second_document is not None and rows.second_offset is not None:
        second_start = rows.second_start
        parts = [
            (rows.segment_row, firsts, second_start, rows.document, rows.offset),
            (rows.segment_row, second_start, ends, rows.second_document, rows.second_offset),
        ]
    columns = [np.stack([column.astype(np.int64) for column in part], axis=1) for part in parts]  # (K, 5) each
    return np.stack(columns, axis=1).reshape(-1, 5)


@kernel
def _mask_rows(
    by_word: bool,
    tokens: NDArray[np.integer],
    word_starts: NDArray[np.bool_],
    parts: NDArray[np.int64],
    copies: NDArray[np.int64],
    special_ranges: NDArray[np.integer],
    ordinary_ids: NDArray[np.int64],
    mask_id: int,
    rate: int,
    thresholds: tuple[int, int],
    keys: NDArray[np.uint64],
    most: int,
    corrupted: NDArray[np.int64],
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> int:
    """Fill the last four, row after row; return the number of predictions.

    Args:
        rate: of 2**32.
    """
    num_rows, length = tokens.shape
    maskable = np.empty(length, np.bool_)
    places, names = np.empty(length, np.int64), np.empty(length, np.uint64)
    total = part = 0
    for row in range(num_rows):
        for place in range(length):
            corrupted[row, place] = tokens[row, place]
        find_maskable(tokens[row], special_ranges, maskable)
        copy = np.uint64(copies[row])
        draw_key, pick_key = hash_u64(keys[0], copy), hash_u64(keys[3], copy)
        starts = word_starts[row] if by_word else maskable
        chosen = 0
        while part < len(parts) and parts[part, 0] == row:
            chosen = _choose(by_word, maskable, starts, parts[part], draw_key, rate, places, names, chosen)
            part += 1
        if chosen > most:
            chosen = most
            while by_word and chosen and places[chosen] == places[chosen - 1] + 1 and not starts[places[chosen]]:
                chosen -= 1
        for one in range(chosen):
            place = places[one]
            indices[total] = row * length + place
            labels[total] = corrupted[row, place]
            total += 1
            fate = np.int64(hash_u64(draw_key, names[one]) & np.uint64(0xFFFF))
            if fate < thresholds[0]:
                corrupted[row, place] = mask_id
            elif fate < thresholds[1]:
                draw = hash_u64(pick_key, names[one]) >> np.uint64(32)
                corrupted[row, place] = ordinary_ids[np.int64(draw * np.uint64(len(ordinary_ids)) >> np.uint64(32))]
        counts[row] = chosen
    return total


@kernel
def _choose(
    by_word: bool,
    maskable: NDArray[np.bool_],
    word_starts: NDArray[np.bool_],
    part: NDArray[np.int64],
    draw_key: np.uint64,
    rate: int,
    places: NDArray[np.int64],
    names: NDArray[np.uint64],
    num_chosen: int,
) -> int:
    """Append the predicted tokens of a part to ``places``, and their names to ``names``; return how many there are now.

    A token's name is ``2**32 * document + place in the document``.
    """
    first, end = part[1], part[2]
    name = (np.uint64(part[3]) << np.uint64(32)) + np.uint64(part[4])
    goes_on = is_chosen = False
    for place in range(first, end):
        if maskable[place]:
            if not (by_word and goes_on) or word_starts[place]:
                is_chosen = bool(np.int64(hash_u64(draw_key, name) >> np.uint64(32)) < rate)
            if is_chosen:
                places[num_chosen], names[num_chosen] = place, name
                num_chosen += 1
        goes_on = bool(maskable[place])
        name += np.uint64(1)
    return num_chosen
