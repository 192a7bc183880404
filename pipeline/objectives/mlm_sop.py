"""Masked language modelling with sentence-order prediction (Lan et al. 2020, section 3.1).

Which parts are swapped is decided where rows are planned (`data/pairs.py`, packing ``pairs_sop``).
"""

from __future__ import annotations

from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.objectives.pair_loss import pair_loss


class MaskedLanguageModelWithSentenceOrder(MaskedLanguageModel):
    """Predict masked tokens, and whether the two parts of a segment stand in their order or are swapped."""

    name = "mlm+sop"
    loss = pair_loss("sop")
    with_pairs = True
