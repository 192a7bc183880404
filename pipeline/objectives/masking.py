"""Which tokens of a row are predicted and what stands in their place: a pure function of (seed, row number).

Letters: R rows, S sequence length.

The masked-language-model corruption of BERT (Devlin et al. 2018, section 3.1), drawn anew for every row number, so anew
in every epoch (RoBERTa's dynamic masking), with an exact count a row. Every draw is a hash: it depends neither on the
batch a row is in nor on who computes it.

A row sort finds the chosen tokens because NumPy sorts 32-bit keys several times faster than it partitions 64-bit ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key

KEPT: Final = -100
"""Label of a token that is not predicted: torch's ``ignore_index``."""

_CHOICE_STREAM: Final = 0x4D41534B  # "MASK"
_FATE_STREAM: Final = 0x46415445  # "FATE"

# Larger temporary arrays would be mapped and unmapped by the allocator at every call, which doubles the time.
_BLOCK_TOKENS: Final = 1 << 14


@dataclass(frozen=True, eq=False)
class MaskingSettings:
    """What masking needs to know, prepared once."""

    seed: int
    rate: float
    mask_token_share: float
    random_token_share: float
    mask_id: int
    is_special: NDArray[np.bool_]
    """Whether an id is never predicted, (vocabulary,)."""

    random_ids: NDArray[np.int64]
    """The ids that random replacements are drawn from: those that are not special."""


def masking_settings(
    *,
    seed: int,
    rate: float,
    mask_token_share: float,
    random_token_share: float,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int],
) -> MaskingSettings:
    """Prepare tables for a tokenizer of ``vocab_size`` ids."""
    is_special = np.zeros(vocab_size, np.bool_)
    is_special[list(special_ids)] = True
    random_ids = np.flatnonzero(~is_special)
    return MaskingSettings(seed, rate, mask_token_share, random_token_share, mask_id, is_special, random_ids)


def num_predictions(maskable: NDArray[np.integer], rate: float) -> NDArray[np.int64]:
    """round(rate x maskable), halves up, element by element."""
    return np.floor(rate * maskable + 0.5).astype(np.int64)


def corrupt(
    tokens: NDArray[np.int64], row_numbers: NDArray[np.int64], is_real: NDArray[np.bool_], settings: MaskingSettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mask rows.

    Args:
        tokens: ids, (R, S).
        row_numbers: run-wide numbers of the rows, (R,).
        is_real: False at padding, (R, S).

    Returns:
        Corrupted ids (R, S) and flat indices (P,) of the predicted tokens, ascending; their labels are
        ``tokens.ravel()[indices]``.
    """
    corrupted = tokens.copy()
    rows_at_once = max(1, _BLOCK_TOKENS // tokens.shape[1])
    indices = [np.empty(0, np.int64)]
    for first in range(0, len(tokens), rows_at_once):
        block = slice(first, first + rows_at_once)
        chosen = _corrupt_block(corrupted[block], row_numbers[block], is_real[block], settings)
        indices.append(chosen + first * tokens.shape[1])
    return corrupted, np.concatenate(indices)


def _corrupt_block(
    tokens: NDArray[np.int64], row_numbers: NDArray[np.int64], is_real: NDArray[np.bool_], settings: MaskingSettings
) -> NDArray[np.int64]:
    """Corrupt ``tokens`` (contiguous) in place and return the flat indices of the predicted ones."""
    maskable = is_real & ~settings.is_special[tokens]  # R S
    counts = num_predictions(maskable.sum(1), settings.rate)  # R
    ranks = np.where(maskable, _choice_keys(row_numbers, tokens.shape[1], settings.seed), np.uint32(0xFFFFFFFF))  # R S
    # The last chosen key of each row; a row of count 0 is taken out below.
    last = np.sort(ranks, axis=1)[np.arange(len(tokens)), np.maximum(counts - 1, 0)]  # R
    chosen = (ranks <= last[:, None]) & maskable & (counts > 0)[:, None]  # R S
    indices = np.flatnonzero(chosen)  # P
    rows = np.repeat(np.arange(len(tokens)), counts)  # P
    places = indices - rows * tokens.shape[1]  # P
    flat = tokens.reshape(-1)
    row_keys = hashes(key(settings.seed, _FATE_STREAM), row_numbers)[rows]  # P
    flat[indices] = _replacements(flat[indices], places, row_keys, settings)
    return indices


def _choice_keys(row_numbers: NDArray[np.int64], sequence_length: int, seed: int) -> NDArray[np.uint32]:
    """Sort keys (R, S): a 32-bit hash with its low bits replaced by the position, so that no two of a row are equal.

    The hash is Wellons's ``lowbias32`` (https://nullprogram.com/blog/2018/07/31/) with the two halves of the row's
    64-bit key mixed in before and between its rounds.
    """
    row_keys = hashes(key(seed, _CHOICE_STREAM), row_numbers)  # R
    low = row_keys.astype(np.uint32)[:, None]  # R 1
    high = (row_keys >> np.uint64(32)).astype(np.uint32)[:, None]  # R 1
    position = np.arange(sequence_length, dtype=np.uint32)  # S
    keys = position * np.uint32(0x9E3779B9) + low  # R S
    keys ^= keys >> np.uint32(16)
    keys *= np.uint32(0x7FEB352D)
    keys ^= high
    keys ^= keys >> np.uint32(15)
    keys *= np.uint32(0x846CA68B)
    keys ^= keys >> np.uint32(16)
    position_bits = np.uint32((1 << max(sequence_length - 1, 1).bit_length()) - 1)
    keys &= ~position_bits
    keys |= position
    return keys


def _replacements(
    original: NDArray[np.int64],
    places: NDArray[np.int64],
    row_keys: NDArray[np.uint64],
    settings: MaskingSettings,
) -> NDArray[np.int64]:
    """What stands at predicted places: the mask token, a random token, or the original one.

    Args:
        original: ids there, (P,).
        places: their positions in their rows, (P,).
        row_keys: 64-bit keys of their rows, (P,).
    """
    draws = hashes(0, row_keys + places.astype(np.uint64))  # P
    fate = draws >> np.uint64(32)  # P, uniform in [0, 2**32)
    # Multiply and shift maps 32 uniform bits onto n ids (Lemire 2019); the bias is below n / 2**32.
    pick = ((draws & np.uint64(0xFFFFFFFF)) * np.uint64(len(settings.random_ids))) >> np.uint64(32)  # P
    random = settings.random_ids[pick.astype(np.int64)]
    masked_below = _threshold(settings.mask_token_share)
    random_below = _threshold(settings.mask_token_share + settings.random_token_share)
    return np.where(fate < masked_below, settings.mask_id, np.where(fate < random_below, random, original))


def _threshold(share: float) -> np.uint64:
    """32 uniform bits are below it with this probability."""
    return np.uint64(math.ceil(share * 2**32))
