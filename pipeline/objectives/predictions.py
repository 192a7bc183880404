"""What an objective made of rows: the ids that the model reads, and what it is to predict where.

Letters: R rows, S sequence length, P predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

KEPT: Final = -100
"""Label of a token that is not predicted: torch's ``ignore_index``."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What an objective made of R rows."""

    input_ids: NDArray[np.int64]
    """Ids that the model reads, (R, S)."""

    indices: NDArray[np.int64]
    """Flat indices of the predicting positions, all different, row after row, in any order within a row, (P,)."""

    labels: NDArray[np.int64]
    """Ids to predict there, (P,)."""

    counts: NDArray[np.int64]
    """Predictions of every row, (R,)."""

    with_pairs: bool = False
    """Whether it is said of every segment of two parts as well what they are to each other (``Rows.pair_label``)."""

    def dense_labels(self) -> NDArray[np.int64]:
        """Labels at their positions and -100 elsewhere, (R, S)."""
        labels = np.full(self.input_ids.shape, KEPT, np.int64)
        labels.ravel()[self.indices] = self.labels
        return labels
