"""The packings by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.data import best_fit, concatenate, one_document, pairs
from pipeline.data.pieces import ShardLengths, ShardPlan
from pipeline.data.rows import RowFormat


@dataclass(frozen=True)
class Packing:
    """A way to turn the documents of a shard into rows. The number of rows depends on lengths alone, never on keys."""

    name: str
    """As in ``data.packing``."""

    version: int
    """Raised when the rows change; part of the settings fingerprint and of a table's file name."""

    count_rows: Callable[[ShardLengths, RowFormat], int]
    """R_s from the shard's lengths."""

    plan: Callable[[ShardLengths, RowFormat, int, int], ShardPlan]
    """Rows from (lengths, format, documents key, cuts key)."""

    max_segments: Callable[[RowFormat], int]
    """Most segments a row."""

    closed_form: Callable[[NDArray[np.int64], NDArray[np.int64], RowFormat], NDArray[np.int64]] | None = None
    """R_s from the manifest's (documents, tokens), where that is possible."""

    needs_sentences: bool = False
    """Whether ``ShardLengths`` must hold the sentences."""

    takes_context: bool = False
    """Whether its pieces can begin with tokens of the piece before (``RowFormat.context_tokens``)."""


def _packing(name: str, module: ModuleType, **facts: Any) -> Packing:
    return Packing(name, module.VERSION, module.count_rows, module.plan, module.max_segments, **facts)


PACKINGS: Final = {
    packing.name: packing
    for packing in (
        _packing("best_fit", best_fit, takes_context=True),
        _packing("concatenate", concatenate, closed_form=concatenate.num_rows),
        _packing("one_document", one_document, takes_context=True),
        *(
            replace(
                _packing(name, pairs, needs_sentences=True),
                count_rows=partial(pairs.count_rows, mode=mode),
                plan=partial(pairs.plan, mode=mode),
            )
            for name, mode in pairs.MODES.items()
        ),
    )
}


def find_packing(name: str) -> Packing:
    """The packing of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PACKINGS:
        raise UserError(f"data.packing is {name!r}; it must be one of {', '.join(PACKINGS)}.")
    return PACKINGS[name]


def check_context(packing: Packing, context_tokens: int) -> None:
    """Refuse a context where the packing has none.

    Raises:
        UserError: naming the packings that have.
    """
    if context_tokens and not packing.takes_context:
        able = " or ".join(name for name, one in PACKINGS.items() if one.takes_context)
        raise UserError(
            f"data.context_tokens is {context_tokens}: packing {packing.name} cannot repeat tokens; set data.packing "
            f"to {able}, or data.context_tokens to 0."
        )


def max_segments_per_row(row_format: RowFormat, packing: str) -> int:
    """A bound on the segments of any row, for static shapes; the padded tail of a row is not counted.

    best_fit: ``max(1, S // 8)``. concatenate: ``S // (1 + overhead)`` for the BERT kind, ``(S + overhead) // (1 +
    overhead)`` for the GPT kind, reached by documents of one token. one_document: 1. Pairs: as
    best_fit.
    """
    return find_packing(packing).max_segments(row_format)
