"""Which tokens of a row are predicted and what stands in their place: a pure function of (seed, row number).

Letters: R rows, S sequence length, P predictions.

The masked-language-model corruption of BERT (Devlin et al. 2018, section 3.1), drawn anew for every row number, so anew
in every epoch (RoBERTa's dynamic masking), with an exact count a row. Tokens, whole words or spans are chosen. Every
draw is a hash: it depends neither on the batch that a row is in nor on who computes it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import mix_array
from pipeline.config.run import ObjectiveConfig
from pipeline.objectives.choice import Choice
from pipeline.objectives.predictions import Predictions
from pipeline.objectives.span_masking import choose_spans, span_length_thresholds
from pipeline.objectives.token_masking import choose_tokens
from pipeline.objectives.word_masking import choose_words

_BLOCK_TOKENS: Final = 1 << 15
"""Tokens masked at once: temporary arrays of this size stay in a core's caches."""


@dataclass(frozen=True, eq=False)
class MaskingSettings:
    """What masking needs to know, prepared once."""

    config: ObjectiveConfig
    seed: int
    mask_id: int
    is_ordinary: NDArray[np.bool_]
    """Whether an id may be predicted, (vocabulary,)."""

    random_ids: NDArray[np.int64]
    """The ids that random replacements are drawn from: the ordinary ones."""

    span_length_thresholds: NDArray[np.uint64]
    """See :func:`pipeline.objectives.span_masking.span_length_thresholds`."""


def masking_settings(
    config: ObjectiveConfig, *, seed: int, mask_id: int, vocab_size: int, special_ids: Collection[int]
) -> MaskingSettings:
    """Prepare tables for a tokenizer of ``vocab_size`` ids, whose padding is among ``special_ids``."""
    is_ordinary = np.ones(vocab_size, np.bool_)
    is_ordinary[list(special_ids)] = False
    thresholds = span_length_thresholds(config.span_geometric_p, config.span_max_words)
    return MaskingSettings(config, seed, mask_id, is_ordinary, np.flatnonzero(is_ordinary), thresholds)


def num_predictions(maskable: NDArray[np.integer], rate: float) -> NDArray[np.int64]:
    """round(rate x maskable), halves up, element by element."""
    return np.floor(rate * maskable + 0.5).astype(np.int64)


def corrupt(
    tokens: NDArray[np.int64],
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
    corrupted = tokens.astype(np.int64)
    rows_at_once = max(1, _BLOCK_TOKENS // tokens.shape[1])
    parts = []
    for first in range(0, max(len(tokens), 1), rows_at_once):
        block = slice(first, first + rows_at_once)
        words = None if word_starts is None else word_starts[block]
        indices, original, counts = _corrupt_block(corrupted[block], row_numbers[block], words, settings)
        parts.append((indices + first * tokens.shape[1], original, counts))
    return Predictions(corrupted, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _corrupt_block(
    tokens: NDArray[np.int64],
    row_numbers: NDArray[np.int64],
    word_starts: NDArray[np.bool_] | None,
    settings: MaskingSettings,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Corrupt ``tokens`` (contiguous) in place: flat indices of the predicted ones and what stood there, (P,) each, and
    their number a row (R,)."""
    config, seed = settings.config, settings.seed
    maskable = settings.is_ordinary[tokens]  # R S
    # A narrow sum is several times faster; a row has fewer than 2**16 tokens.
    num_maskable = maskable.view(np.uint8).sum(1, dtype=np.uint16)  # R
    counts = num_predictions(num_maskable, config.mask_rate)
    if word_starts is None or config.masking == "token":
        choice = choose_tokens(maskable, counts, row_numbers, seed, config.mask_rate)
    elif config.masking == "whole_word":
        choice, counts = choose_words(maskable, counts, row_numbers, seed, word_starts)
    else:
        choice = choose_spans(maskable, counts, row_numbers, seed, word_starts, settings.span_length_thresholds)
    flat = tokens.reshape(-1)
    original = flat.take(choice.indices)
    flat[choice.indices] = _replacements(original, choice, settings)
    return choice.indices, original, counts


def _replacements(original: NDArray[np.int64], choice: Choice, settings: MaskingSettings) -> NDArray[np.int64]:
    """What stands at the chosen places: the mask token, a random token, or the ``original`` one, (P,)."""
    masked_below = _threshold(settings.config.mask_token_share)
    random_below = _threshold(settings.config.mask_token_share + settings.config.random_token_share)
    fate = choice.fates >> np.uint64(32)  # P, uniform in [0, 2**32)
    replaced = np.where(fate < masked_below, settings.mask_id, original)
    at_random = np.flatnonzero((fate >= masked_below) & (fate < random_below))
    draws = mix_array(choice.picks[at_random]) >> np.uint64(32)
    # Multiply and shift maps 32 uniform bits onto n ids (Lemire 2019); the bias is below n / 2**32.
    picked = (draws * np.uint64(len(settings.random_ids))) >> np.uint64(32)
    replaced[at_random] = settings.random_ids[picked.astype(np.int64)]
    return replaced


def _threshold(share: float) -> np.uint64:
    """32 uniform bits are below it with this probability."""
    return np.uint64(math.ceil(share * 2**32))
