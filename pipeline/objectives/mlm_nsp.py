"""Masked language modelling with next-sentence prediction (Devlin et al. 2019, section 3.1).

Which pairs are true is decided where rows are planned (`data/pairs.py`, packing ``pairs_nsp``).
"""

from __future__ import annotations

from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.pair_loss import pair_loss


class MaskedLanguageModelWithNextSentence(MaskedLanguageModel):
    """Predict masked tokens, and whether a segment's second part follows its first or is of another document."""

    name = "mlm+nsp"
    loss = pair_loss("nsp")
    with_pairs = True
