"""Which tokens of a row are predicted and what stands in their place: a pure function of (seed, row number).

Letters: R rows, S sequence length, N runs of special ids, P predictions.

The masked-language-model corruption of BERT (Devlin et al. 2018, section 3.1), drawn anew for every row number, so anew
in every epoch (RoBERTa's dynamic masking), with an exact count a row. Tokens, whole words or spans are chosen. Every
draw is a hash: it depends neither on the batch that a row is in nor on who computes it. Masks that stay with the
tokens of a document are those of :mod:`pipeline.objectives.static_masking`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.jit import kernel
from pipeline.base.keyed import key
from pipeline.base.keyed_kernels import hash_u64
from pipeline.config.run import Masking, ObjectiveConfig
from pipeline.objectives.predictions import Predictions
from pipeline.objectives.span_masking import choose_spans, span_lengths, tile_with_spans
from pipeline.objectives.token_masking import choose_tokens
from pipeline.objectives.word_masking import choose_words, measure_words

_TOKEN: Final = 0
_WHOLE_WORD: Final = 1
_SPAN: Final = 2
_KINDS: Final[dict[Masking, int]] = {"token": _TOKEN, "whole_word": _WHOLE_WORD, "span": _SPAN}

_ORDER_STREAMS: Final[dict[Masking, int]] = {"token": 0x4D41534B, "whole_word": 0x574F5244, "span": 0x5350414E}
_LENGTH_STREAM: Final = 0x4C454E47  # "LENG"
_FATE_STREAM: Final = 0x46415445  # "FATE"
_RANDOM_ID_STREAM: Final = 0x5049434B  # "PICK"


@dataclass(frozen=True, eq=False)
class MaskingSettings:
    """What masking needs to know, prepared once."""

    config: ObjectiveConfig
    mask_id: int
    special_ranges: NDArray[np.int64]
    """First and last id of every run of ids that are never predicted, (N, 2): to compare a row with the few runs that a
    tokenizer has is faster than to look its tokens up."""

    ordinary_ids: NDArray[np.int64]
    """All other ids: random replacements are drawn from them."""

    span_lengths: NDArray[np.int32]
    """See :func:`pipeline.objectives.span_masking.span_lengths`, (65536,)."""

    keys: NDArray[np.uint64]
    """Of the seed and of the order of units, the lengths of spans, the fates of words, the random ids, (4,)."""


def masking_settings(
    config: ObjectiveConfig, *, seed: int, mask_id: int, vocab_size: int, special_ids: Collection[int]
) -> MaskingSettings:
    """Prepare tables for a tokenizer of ``vocab_size`` ids, whose padding is among ``special_ids``."""
    is_special = np.zeros(vocab_size + 2, np.bool_)  # with an ordinary one on either side
    is_special[[special_id + 1 for special_id in special_ids]] = True
    borders = np.flatnonzero(np.diff(is_special))
    streams = (_ORDER_STREAMS[config.masking], _LENGTH_STREAM, _FATE_STREAM, _RANDOM_ID_STREAM)
    return MaskingSettings(
        config,
        mask_id,
        np.column_stack([borders[::2], borders[1::2] - 1]),
        np.flatnonzero(~is_special[1:-1]),
        span_lengths(config.span_geometric_p, config.span_max_words),
        np.array([key(seed, stream) for stream in streams], np.uint64),
    )


@kernel
def num_predictions(num_maskable: int, rate: float) -> int:
    """round(rate x maskable), halves up."""
    return math.floor(rate * num_maskable + 0.5)


def corrupt(
    tokens: NDArray[np.integer],
    row_numbers: NDArray[np.int64],
    word_starts: NDArray[np.bool_] | None,
    settings: MaskingSettings,
) -> Predictions:
    """Mask rows.

    Args:
        tokens: ids, (R, S); they stay as they are.
        row_numbers: run-wide numbers of the rows, (R,).
        word_starts: where words begin, (R, S); token masking needs none.

    Raises:
        UserError: words are to be masked and there are none.
    """
    config = settings.config
    word_starts = require_words(word_starts, config.masking)
    most = tokens.shape[0] * num_predictions(tokens.shape[1], config.mask_rate)
    corrupted = np.empty(tokens.shape, np.int64)
    indices, labels, counts = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(len(tokens), np.int64)
    thresholds = (
        threshold(config.mask_token_share),
        threshold(config.mask_token_share + config.random_token_share),
    )
    total = _mask_rows(
        _KINDS[config.masking],
        tokens,
        row_numbers,
        word_starts,
        settings.special_ranges.astype(tokens.dtype),  # of one dtype with the tokens, they are compared as vectors
        settings.ordinary_ids,
        settings.mask_id,
        config.mask_rate,
        thresholds,
        settings.keys,
        settings.span_lengths,
        corrupted,
        indices,
        labels,
        counts,
    )
    return Predictions(corrupted, indices[:total], labels[:total], counts)


def require_words(word_starts: NDArray[np.bool_] | None, masking: Masking) -> NDArray[np.bool_]:
    """Where words begin, (R, S); empty where tokens are masked and nobody has said.

    Raises:
        UserError: words are to be masked and there are none.
    """
    if word_starts is not None:
        return word_starts
    if masking != "token":
        raise UserError(
            f"objective.masking: `{masking}` needs to know where words begin, and the corpus does not "
            "say: build it with shards.words: true, or set objective.masking to `token`."
        )
    return np.empty((0, 0), np.bool_)


@kernel
def _mask_rows(
    kind: int,
    tokens: NDArray[np.integer],
    row_numbers: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    special_ranges: NDArray[np.integer],
    ordinary_ids: NDArray[np.int64],
    mask_id: int,
    rate: float,
    thresholds: tuple[int, int],
    keys: NDArray[np.uint64],
    span_lengths: NDArray[np.int32],
    corrupted: NDArray[np.int64],
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> int:
    """Fill the last four, row after row; return the number of predictions."""
    num_rows, length = tokens.shape
    maskable = np.empty(length, np.bool_)
    sizes, places, fates = np.empty(length, np.int64), np.empty(length, np.int64), np.empty(length, np.int64)
    total = 0
    for row in range(num_rows):
        ids, inputs = tokens[row], corrupted[row]
        for place in range(length):
            inputs[place] = ids[place]
        num_maskable = find_maskable(ids, special_ranges, maskable)
        wanted = num_predictions(num_maskable, rate)
        number = np.uint64(row_numbers[row])
        order_key = hash_u64(keys[0], number)
        if kind == _TOKEN:
            chosen = choose_tokens(maskable, wanted, order_key, places, fates)
        else:
            measure_words(maskable, word_starts[row], sizes)
            if kind == _WHOLE_WORD:
                chosen = choose_words(sizes, wanted, order_key, places)
                for one in range(chosen):
                    fates[one] = np.int64(_place_draw(keys[2], number, places[one]) >> np.uint64(48))
            else:
                tile_with_spans(sizes, hash_u64(keys[1], number), span_lengths)
                chosen = choose_spans(sizes, wanted, order_key, places, fates)
        for one in range(chosen):
            place = places[one]
            indices[total] = row * length + place
            labels[total] = corrupted[row, place]
            total += 1
            if fates[one] < thresholds[0]:
                corrupted[row, place] = mask_id
            elif fates[one] < thresholds[1]:
                # Multiply and shift maps 32 uniform bits onto n ids (Lemire 2019); the bias is below n / 2**32.
                draw = _place_draw(keys[3], number, place) >> np.uint64(32)
                corrupted[row, place] = ordinary_ids[np.int64(draw * np.uint64(len(ordinary_ids)) >> np.uint64(32))]
        counts[row] = chosen
    return total


@kernel
def find_maskable(ids: NDArray[np.integer], special_ranges: NDArray[np.integer], maskable: NDArray[np.bool_]) -> int:
    """Fill the last one, (S,): where the id is in no range; return at how many places."""
    for place in range(len(ids)):
        maskable[place] = True
    for number in range(len(special_ranges)):
        first, last = special_ranges[number, 0], special_ranges[number, 1]
        for place in range(len(ids)):
            maskable[place] &= (ids[place] < first) | (ids[place] > last)
    num_maskable = 0
    for place in range(len(ids)):
        num_maskable += maskable[place]
    return num_maskable


@kernel
def _place_draw(stream_key: np.uint64, row_number: np.uint64, place: int) -> np.uint64:
    """``hash(key, 2**16 * row number + place)``."""
    return hash_u64(stream_key, (row_number << np.uint64(16)) + np.uint64(place))


def threshold(share: float) -> int:
    """16 uniform bits are below it with this probability."""
    return math.ceil(share * 2**16)
