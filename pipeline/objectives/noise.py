"""Noise for a text that is to be restored (Lewis et al. 2020, "BART", section 2.2), segment by segment.

In this order, each with a rate of its own, 0 for none: one span is masked token by token (Song et al. 2019, "MASS"),
sentences change places, tokens are deleted, tokens become mask tokens, spans of tokens become one mask token each
(infilling), the text is rotated. The first and last special tokens of a segment stay where they are.

Nothing is drawn from a generator: numbers are hashes of a segment's name (row number and first place, as
``2^16 * row + place``) and of a place in it. A text never grows, so that it has room where the clean one has.

Letters: N tokens of a segment, M tokens of text in it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.jit import kernel
from pipeline.base.keyed import key
from pipeline.base.keyed_kernels import hash_u64

_NAMES: Final = (b"SENT", b"ORDE", b"DELE", b"TMSK", b"SPAN", b"LENG", b"ROTA", b"TURN", b"MASS", b"FATE", b"PICK")
_MOST_SPAN: Final = 32
"""Longest span that is drawn: Poisson draws of 3 are below it but for one in 10^20."""


class Noise(NamedTuple):
    """Rates and keys, as kernels take them."""

    keys: NDArray[np.uint64]
    """Of the choices, (11,)."""

    permute: float
    """Share of the segments whose sentences change places."""

    delete: float
    """Share of the tokens that are left out."""

    mask: float
    """Share of the tokens that become mask tokens, one by one."""

    infill: float
    """Share of the tokens in spans that become one mask token each."""

    lengths: NDArray[np.int64]
    """Length of a span for every value of 16 uniform bits, (65536,)."""

    rotate: float
    """Share of the segments that begin somewhere else."""

    mask_id: int

    span: float
    """Share of a text that is masked in one span."""

    fates: NDArray[np.int64]
    """Of 16 uniform bits of a token of that span, those below the first become a mask token, those below the second a
    random token, (2,)."""

    ordinary_ids: NDArray[np.int64]
    """Random tokens are drawn from them."""


def poisson_lengths(mean: float) -> NDArray[np.int64]:
    """Length of a span for every value of 16 uniform bits: the inverse of the Poisson distribution, (65536,)."""
    share = np.exp(-mean)
    shares = []
    for length in range(_MOST_SPAN):
        shares.append(share)
        share *= mean / (length + 1)
    return np.searchsorted(np.cumsum(shares)[:-1] * 2**16, np.arange(2**16), side="right").astype(np.int64)


def make_noise(
    seed: int,
    mask_id: int,
    *,
    permute: float,
    delete: float,
    mask: float,
    infill: float,
    mean: float,
    rotate: float,
    span: float = 0.0,
    mask_share: float = 1.0,
    random_share: float = 0.0,
    ordinary_ids: NDArray[np.int64] | None = None,
) -> Noise:
    """Noise of a run; ``ordinary_ids`` are needed where ``random_share`` is above 0."""
    keys = np.array([key(seed, int.from_bytes(name, "big")) for name in _NAMES], np.uint64)
    fates = np.ceil(2**16 * np.array([mask_share, min(1.0, mask_share + random_share)])).astype(np.int64)
    ids = np.array([mask_id], np.int64) if ordinary_ids is None else ordinary_ids.astype(np.int64)
    return Noise(keys, permute, delete, mask, infill, poisson_lengths(mean), rotate, mask_id, span, fates, ids)


@kernel
def _uniform(base_key: np.uint64, name: np.uint64) -> float:
    return np.float64(hash_u64(base_key, name) >> np.uint64(11)) / 2.0**53


@kernel
def add_noise(
    segment: NDArray[np.unsignedinteger],
    sentence_starts: NDArray[np.bool_],
    num_begin: int,
    num_end: int,
    name: int,
    noise: Noise,
    noisy: NDArray[np.int64],
) -> int:
    """Write what becomes of a segment, (N,), into ``noisy`` (N,); return how many tokens that are, at most N.

    Args:
        sentence_starts: true where a sentence begins, (N,), or empty: the segment is one sentence.
        num_begin, num_end: special tokens before and after the text.
        name: of the segment, ``2^16 * row number + place``.
    """
    length = len(segment)
    size = max(length - num_begin - num_end, 0)
    clean, text = np.empty(size, np.int64), np.empty(size, np.int64)
    for place in range(size):
        clean[place] = segment[num_begin + place]
    if noise.span > 0:
        _mask_span(clean, name, noise)
    _permuted(clean, sentence_starts[num_begin:], name, noise, text)
    size = _deleted_and_masked(text, size, name, noise)
    if noise.infill > 0:
        size = _infilled(text, size, name, noise)
    turn = 0
    if size > 1 and _uniform(noise.keys[6], np.uint64(name)) < noise.rotate:
        turn = int(_uniform(noise.keys[7], np.uint64(name)) * size)
    at = min(num_begin, length)
    for place in range(at):
        noisy[place] = segment[place]
    for place in range(size):
        noisy[at + place] = text[(place + turn) % size]
    at += size
    for place in range(max(length - num_end, num_begin), length):
        noisy[at] = segment[place]
        at += 1
    return at


@kernel
def masked_span(size: int, name: int, noise: Noise) -> tuple[int, int]:
    """Where the masked span of a text begins, every place being as likely, and behind its end.

    It has ``round(span * size)`` tokens, halves rounded up, and at least one.
    """
    count = min(size, max(1, int(noise.span * size + 0.5)))
    first = int(_uniform(noise.keys[8], np.uint64(name)) * (size - count + 1))
    return first, first + count


@kernel
def _mask_span(text: NDArray[np.int64], name: int, noise: Noise) -> None:
    """Each token of the span becomes a mask token, a random one, or stays, in place."""
    begin, end = masked_span(len(text), name, noise)
    for place in range(begin, end):
        here = np.uint64(name + place)
        fate = int(hash_u64(noise.keys[9], here) & np.uint64(0xFFFF))
        if fate < noise.fates[0]:
            text[place] = noise.mask_id
        elif fate < noise.fates[1]:
            draw = hash_u64(noise.keys[10], here) >> np.uint64(32)
            text[place] = noise.ordinary_ids[int(draw * np.uint64(len(noise.ordinary_ids)) >> np.uint64(32))]


@kernel
def _permuted(
    clean: NDArray[np.int64], sentence_starts: NDArray[np.bool_], name: int, noise: Noise, text: NDArray[np.int64]
) -> None:
    """Fill the last: the text with its sentences in the order of their hashes, or as it is."""
    size = len(text)
    if len(sentence_starts) == 0 or _uniform(noise.keys[0], np.uint64(name)) >= noise.permute:
        for place in range(size):
            text[place] = clean[place]
        return
    starts = np.empty(size + 1, np.int64)
    num_sentences = 0
    for place in range(size):
        if place == 0 or sentence_starts[place]:
            starts[num_sentences] = place
            num_sentences += 1
    starts[num_sentences] = size
    drawn = np.empty(num_sentences, np.uint64)
    for sentence in range(num_sentences):
        drawn[sentence] = hash_u64(noise.keys[1], np.uint64(name + starts[sentence]))
    at = 0
    for sentence in np.argsort(drawn):
        for place in range(starts[sentence], starts[sentence + 1]):
            text[at] = clean[place]
            at += 1


@kernel
def _deleted_and_masked(text: NDArray[np.int64], size: int, name: int, noise: Noise) -> int:
    """Leave tokens out and mask tokens, in place; the new size."""
    if noise.delete == 0 and noise.mask == 0:
        return size
    kept = 0
    for place in range(size):
        here = np.uint64(name + place)
        if noise.delete > 0 and _uniform(noise.keys[2], here) < noise.delete:
            continue
        masked = noise.mask > 0 and _uniform(noise.keys[3], here) < noise.mask
        text[kept] = noise.mask_id if masked else text[place]
        kept += 1
    return kept


@kernel
def _infilled(text: NDArray[np.int64], size: int, name: int, noise: Noise) -> int:
    """Put one mask token in the place of each of some spans, in place; the new size.

    Spans begin at places drawn one after another, with lengths drawn beside them, until ``round(infill * size)`` tokens
    are covered; the last one is cut. One that meets an earlier one is drawn again; after ``4 * size`` draws it is cut:
    only a text that is covered nearly whole needs as many. A span of no token is a mask token before its place, as long
    as the text does not grow.
    """
    wanted = int(noise.infill * size + 0.5)
    first_of = np.zeros(size, np.int64)  # tokens of the span that begins here
    covered = np.zeros(size, np.bool_)
    before = np.zeros(size, np.bool_)  # an inserted mask token
    inserted = np.empty(size, np.int64)
    num_covered = num_inserted = saved = number = 0
    while num_covered < wanted and number < 16 * size + 64:
        drawn = hash_u64(noise.keys[4], np.uint64((name << 16) + number))
        number += 1
        place = int((drawn >> np.uint64(32)) * np.uint64(size) >> np.uint64(32))
        span = min(noise.lengths[int(drawn & np.uint64(0xFFFF))], wanted - num_covered, size - place)
        if noise.lengths[int(drawn & np.uint64(0xFFFF))] == 0:
            if num_inserted < size and not before[place] and not covered[place]:
                before[place] = True
                inserted[num_inserted] = place
                num_inserted += 1
            continue
        free = 0
        while free < span and not covered[place + free]:
            free += 1
        if free == 0 or (free < span and number < 4 * size):
            continue
        span = free
        first_of[place] = span
        for token in range(place, place + span):
            covered[token] = True
        num_covered += span
        saved += span - 1
    for one in range(saved, num_inserted):  # what there is no room for
        before[inserted[one]] = False
    result = np.empty(size, np.int64)
    at = 0
    for place in range(size):
        if before[place] and not covered[place]:
            result[at] = noise.mask_id
            at += 1
        if first_of[place] > 0:
            result[at] = noise.mask_id
            at += 1
        if not covered[place]:
            result[at] = text[place]
            at += 1
    for place in range(at):
        text[place] = result[place]
    return at
