"""Which units of a row are predicted, drawn in random order without a generator: darts thrown until enough have hit.

Letters: R rows, W width of a row (a power of two), D darts a row, H hits, P predictions.

Dart i of a row is 32 bits of ``hash(row key, i // 2)``, the lower half for even i. Its low bits name a place among W,
its high 16 bits are a fate. A dart hits if a unit (a token, a word, a span) begins at its place and no earlier dart hit
it. So units are visited in an order that makes all orders equally likely, as by sorting one hash a unit. But a rate of
0.15 needs 0.16 * W darts, two a hash; and nothing is sorted, which is fast only where NumPy has vector code for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen, row after row."""

    first: NDArray[np.int64]
    """Flat indices into the R * W tokens, all different, (P,)."""

    fates: NDArray[np.uint32]
    """16 uniform bits each, (P,)."""

    num_tokens: NDArray[np.integer] | NDArray[np.bool_]
    """Tokens from ``first`` on, (P,)."""

    def tokens(self) -> NDArray[np.int64]:
        """Flat indices of all tokens."""
        before = np.cumsum(self.num_tokens) - self.num_tokens  # P
        return np.repeat(self.first - before, self.num_tokens) + np.arange(self.num_tokens.sum())


Select = Callable[
    [NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]],
    tuple[NDArray[np.integer] | NDArray[np.bool_], NDArray[np.bool_]],
]
"""From r rows, the places of darts as flat indices, (r, D), and which hit, (r, D): how many tokens to take at each
dart, (r, D), and whether that is all that a row can have, (r,). More darts must not change what the first are given."""


def usual_num_darts(width: int, rate: float) -> int:
    """Darts that suffice for nearly every row: ``n`` of them leave a place untouched with probability exp(-n / W)."""
    expected = -width * math.log1p(-min(rate, 0.98))
    return math.ceil(expected + 1.5 * math.sqrt(expected)) + 1


def throw_darts(
    begins: NDArray[np.bool_],
    row_keys: NDArray[np.uint64],
    num_darts: int,
    select: Select,
    rows: NDArray[np.int64] | None = None,
) -> Choice:
    """Throw at rows (all, or ``rows`` of them) until ``select`` has enough.

    Args:
        begins: where a unit begins, (R, W).
        row_keys: (R,).
        num_darts: how many to try first; it changes the time that is needed, never the choice.
    """
    if rows is None:
        rows = np.arange(len(begins))
    target, darts, is_hit = _throw(begins, row_keys, num_darts, rows)
    num_tokens, is_done = select(rows, target, is_hit)
    if is_done.all():
        return _chosen(target, darts, num_tokens)
    num_tokens[~is_done] = 0
    chosen = _chosen(target, darts, num_tokens)
    # Chance, or a row where little can be hit: the same darts again and as many more.
    late = throw_darts(begins, row_keys, 2 * num_darts, select, rows[~is_done])
    both = [np.concatenate(pair) for pair in zip(_columns(chosen), _columns(late), strict=True)]
    by_row = np.argsort(both[0] // begins.shape[1], kind="stable")
    return Choice(*(column[by_row] for column in both))


def _throw(
    begins: NDArray[np.bool_], row_keys: NDArray[np.uint64], num_darts: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.bool_]]:
    """Places as flat indices, 32 bits each, and which hit, (r, D) each."""
    width = begins.shape[1]
    darts = hashes(row_keys[rows, None], np.arange(-(-num_darts // 2))).astype("<u8", copy=False).view("<u4")  # r D
    target = (darts & np.uint32(width - 1)).astype(np.int64)
    flat = target.ravel()  # r*D
    flat += np.repeat(rows * width, target.shape[1])
    number = np.arange(flat.size, dtype=np.int32)  # r*D
    # Of the darts at one place any may be written last, so those that were overwritten are compared with it.
    first_dart = np.empty(begins.size, np.int32)  # R*W
    first_dart[flat] = number
    others = np.flatnonzero(first_dart.take(flat) != number)
    np.minimum.at(first_dart, flat[others], number[others])
    is_hit = first_dart.take(flat) == number
    is_hit &= begins.ravel().take(flat)
    return target, darts, is_hit.reshape(target.shape)


def _chosen(
    target: NDArray[np.int64], darts: NDArray[np.uint32], num_tokens: NDArray[np.integer] | NDArray[np.bool_]
) -> Choice:
    chosen = np.flatnonzero(num_tokens)
    return Choice(target.take(chosen), darts.take(chosen) >> np.uint32(16), num_tokens.take(chosen))


def _columns(choice: Choice) -> tuple[NDArray[Any], ...]:
    return choice.first, choice.fates, choice.num_tokens
