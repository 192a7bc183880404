"""Documents that are token ids already: what an import reads, batch by batch, whatever the format.

Letters: D documents of a batch, T tokens of a batch, N sentences of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BATCH_TOKENS: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """A run of documents."""

    ids: list[str]
    """Names of the documents, D of them."""

    tokens: NDArray[np.integer]
    """Ids of all documents, end to end, (T,)."""

    borders: NDArray[np.int64]
    """Document ``d`` is ``tokens[borders[d]:borders[d + 1]]``, (D+1,)."""

    sentences: NDArray[np.int64] | None
    """Where sentences begin in ``tokens``, not decreasing, (N,); None if the source knows no sentences."""


class TokenSource(ABC):
    """The documents of one split, always in the same order."""

    has_sentences: bool
    """Whether :attr:`TokenBatch.sentences` is there."""

    cuts_at_eod: bool
    """Whether an end-of-document id in the middle of a document is a border of documents."""

    @abstractmethod
    def sizes(self) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        """Names and tokens (D,) of all documents, run by run.

        Raises:
            UserError: the source cannot be read.
        """

    @abstractmethod
    def batches(self) -> Iterator[TokenBatch]:
        """All documents; a batch has about :data:`BATCH_TOKENS` tokens, or one document.

        Raises:
            UserError: the source cannot be read.
        """


def runs(lengths: NDArray[np.int64], batch_tokens: int = BATCH_TOKENS) -> Iterator[tuple[int, int]]:
    """Cut documents of these lengths (D,) into runs ``[begin, end)`` of ``batch_tokens`` at most, or one document."""
    borders = np.append(0, np.cumsum(lengths, dtype=np.int64))
    begin = 0
    while begin < len(lengths):
        end = int(np.searchsorted(borders, borders[begin] + batch_tokens, side="right")) - 1
        end = max(begin + 1, end)
        yield begin, end
        begin = end
