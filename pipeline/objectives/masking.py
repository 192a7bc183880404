"""Which tokens of a row are predicted and what stands in their place: a pure function of (seed, row number).

Letters: R rows, S sequence length, W the power of two not below S, P predictions.

The masked-language-model corruption of BERT (Devlin et al. 2018, section 3.1), drawn anew for every row number, so anew
in every epoch (RoBERTa's dynamic masking), with an exact count a row. Tokens, whole words or spans are chosen. Every
draw is a hash: it depends neither on the batch that a row is in nor on who computes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import hashes, key
from pipeline.config.run import ObjectiveConfig
from pipeline.objectives.darts import usual_num_darts
from pipeline.objectives.predictions import Predictions
from pipeline.objectives.span_masking import choose_spans, span_lengths
from pipeline.objectives.token_masking import choose_tokens
from pipeline.objectives.word_masking import choose_words

_FATE_STREAM: Final = 0x46415445  # "FATE"
_RANDOM_ID_STREAM: Final = 0x5049434B  # "PICK"


@dataclass(frozen=True, eq=False)
class MaskingSettings:
    """What masking needs to know, prepared once."""

    config: ObjectiveConfig
    seed: int
    mask_id: int
    special_ranges: Sequence[tuple[int, int]]
    """Ids that are never predicted, from the first to before the second: comparing with the few ranges that a tokenizer
    has is several times faster than looking every token up."""

    ordinary_ids: NDArray[np.int64]
    """All other ids: random replacements are drawn from them."""

    span_lengths: NDArray[np.int32]
    """See :func:`pipeline.objectives.span_masking.span_lengths`, (65536,)."""


def masking_settings(
    config: ObjectiveConfig, *, seed: int, mask_id: int, vocab_size: int, special_ids: Collection[int]
) -> MaskingSettings:
    """Prepare tables for a tokenizer of ``vocab_size`` ids, whose padding is among ``special_ids``."""
    is_special = np.zeros(vocab_size + 2, np.bool_)  # with an ordinary one on either side
    is_special[[special_id + 1 for special_id in special_ids]] = True
    borders = np.flatnonzero(np.diff(is_special)).tolist()
    ranges = list(zip(borders[::2], borders[1::2], strict=True))
    lengths = span_lengths(config.span_geometric_p, config.span_max_words)
    return MaskingSettings(config, seed, mask_id, ranges, np.flatnonzero(~is_special[1:-1]), lengths)


def num_predictions(maskable: NDArray[np.integer], rate: float) -> NDArray[np.int64]:
    """round(rate x maskable), halves up, element by element."""
    return np.floor(rate * maskable + 0.5).astype(np.int64)


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
    if word_starts is None and settings.config.masking != "token":
        raise UserError(
            f"objective.masking: `{settings.config.masking}` needs to know where words begin, and the corpus does not "
            "say: build it with shards.words: true, or set objective.masking to `token`."
        )
    config, length = settings.config, tokens.shape[1]
    unsigned = tokens if tokens.dtype.kind == "u" else tokens.view(f"u{tokens.itemsize}")
    # What is below the first id of a range wraps around.
    ordinary = [unsigned - first >= end - first for first, end in settings.special_ranges]
    maskable = reduce(np.logical_and, ordinary)  # R S
    # A narrow sum is several times faster; a row has fewer than 2**16 tokens.
    num_maskable = maskable.view(np.uint8).sum(1, dtype=np.uint16)  # R
    counts = num_predictions(num_maskable, config.mask_rate)
    indices, fates = _choose(maskable, counts, row_numbers, word_starts, settings)
    if config.masking == "whole_word":
        counts = np.bincount(indices // length, minlength=len(tokens))
    corrupted = tokens.astype(np.int64)
    flat = corrupted.reshape(-1)
    labels = flat.take(indices)  # P
    flat[indices] = settings.mask_id
    unmasked = np.flatnonzero(fates >= _threshold(config.mask_token_share))
    flat[indices.take(unmasked)] = labels.take(unmasked)
    is_random = fates.take(unmasked) < _threshold(config.mask_token_share + config.random_token_share)
    at_random = indices.take(unmasked[is_random])
    flat[at_random] = _random_ids(at_random, row_numbers, length, settings)
    return Predictions(corrupted, indices, labels, counts)


def _choose(
    maskable: NDArray[np.bool_],
    counts: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    word_starts: NDArray[np.bool_] | None,
    settings: MaskingSettings,
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Flat indices of the chosen tokens, row after row, and 16 uniform bits for the fate of each, (P,)."""
    length = maskable.shape[1]
    width = 1 << (length - 1).bit_length()
    if width > length:
        tail = ((0, 0), (0, width - length))
        maskable = np.pad(maskable, tail)  # R W
        word_starts = None if word_starts is None else np.pad(word_starts, tail)
    kind, seed = settings.config.masking, settings.seed
    # The sizes of words and spans add to chance.
    num_darts = usual_num_darts(width, settings.config.mask_rate) * (2 if kind == "token" else 3) // 2
    if word_starts is None or kind == "token":
        choice = choose_tokens(maskable, counts, row_numbers, seed, num_darts)
        indices, fates = choice.first, choice.fates
    elif kind == "whole_word":
        indices = choose_words(maskable, counts, row_numbers, seed, num_darts, word_starts).tokens()
        fates = (_place_draws(_FATE_STREAM, indices, row_numbers, width, seed) >> np.uint64(48)).astype(np.uint32)
    else:
        choice = choose_spans(maskable, counts, row_numbers, seed, num_darts, word_starts, settings.span_lengths)
        indices, fates = choice.tokens(), np.repeat(choice.fates, choice.num_tokens)
    if width > length:
        indices -= indices // width * (width - length)
    return indices, fates


def _random_ids(
    indices: NDArray[np.int64], row_numbers: NDArray[np.int64], length: int, settings: MaskingSettings
) -> NDArray[np.int64]:
    """A random ordinary id for each of the places."""
    draws = _place_draws(_RANDOM_ID_STREAM, indices, row_numbers, length, settings.seed) >> np.uint64(32)
    # Multiply and shift maps 32 uniform bits onto n ids (Lemire 2019); the bias is below n / 2**32.
    picked = (draws * np.uint64(len(settings.ordinary_ids))) >> np.uint64(32)
    return settings.ordinary_ids[picked.astype(np.int64)]


def _place_draws(
    stream: int, indices: NDArray[np.int64], row_numbers: NDArray[np.int64], width: int, seed: int
) -> NDArray[np.uint64]:
    """``hash(key, 2**16 * row number + place)`` of flat indices into rows of ``width``, same shape."""
    row = indices // width
    return hashes(key(seed, stream), (row_numbers[row] << 16) + (indices - row * width))


def _threshold(share: float) -> int:
    """16 uniform bits are below it with this probability."""
    return math.ceil(share * 2**16)
