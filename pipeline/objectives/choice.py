"""The tokens that masking chose, and the draws that decide what stands in their place.

Letters: R rows, S sequence length, P predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Choice:
    """P tokens of R rows, row after row."""

    indices: NDArray[np.int64]
    """Flat indices into the R * S tokens, all different, (P,)."""

    fates: NDArray[np.uint64]
    """Draws whose upper 32 bits choose mask, random or keep, (P,)."""

    picks: NDArray[np.uint64]
    """Draws whose hash chooses the random token, should there be one, (P,)."""
