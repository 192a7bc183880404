"""Which tokens begin a word, from what a fast tokenizer knows of its tokens: for WordPiece, BPE and Unigram alike.

Letters: T tokens of a text, C characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LAST_SPACE = 0x3000
_IS_SPACE = np.array([chr(point).isspace() for point in range(_LAST_SPACE + 1)] + [False])
"""By code point; the last entry stands for all above."""


def word_starts(text: str, word_ids: Sequence[int | None], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each token begins a word.

    It does where the pre-tokenizer's word changes, and, since some tokenizers have no pre-tokenizer, where white space
    lies between it and the token before, or where it begins with white space itself.

    Args:
        text: that was encoded as one piece.
        word_ids: of every token, as ``Encoding.word_ids``; None belongs to no word and begins one of its own, (T,).
        offsets: begin and end of every token in the text, (T, 2).

    Returns:
        bool (T,), the first True.
    """
    if not len(word_ids):
        return np.zeros(0, np.bool_)
    ids = np.array(word_ids, np.float64)  # None becomes NaN, which differs from everything
    is_space = _IS_SPACE[np.minimum(np.frombuffer(text.encode("utf-32-le"), "<u4"), _LAST_SPACE + 1)]
    is_space = np.append(is_space, False)  # (C+1,)
    spaces_before = np.cumsum(is_space) - is_space  # (C+1,)
    begin, end = offsets.T
    # The tokens of one character lie on the same place, of which only the first begins anything.
    end_before = np.append(0, np.maximum.accumulate(end)[:-1])
    starts = spaces_before[begin] > spaces_before[end_before]
    starts |= is_space[begin] & (begin >= end_before) & (end > begin)
    starts[1:] |= ids[1:] != ids[:-1]
    starts[0] = True
    return starts
