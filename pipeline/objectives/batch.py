"""One micro-batch, as the model takes it: tensors whose shapes are the same for every batch of a run, but for
``cu_seqlens``, which has a second one for the rare micro-batch of very many segments.

Letters: R rows, S sequence length, C most segments a row (padding counted), P most predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import torch
from torch import Tensor

from pipeline.objectives.terms import Term


@dataclass(frozen=True, eq=False)
class Batch:
    """R packed rows and what is predicted in them. Tensors are int64 on the CPU unless said otherwise."""

    input_ids: Tensor
    """Corrupted ids, (R, S)."""

    position_ids: Tensor
    """Positions, from 0 in every segment and in every run of padding, (R, S)."""

    cu_seqlens: Tensor
    """int32 (R * C + 1,), or shorter where the usual number of entries is enough (see ``Capacity``): starts of the
    segments in the R * S flattened tokens, then R * S to the end.

    Padding is a segment of its own; the unused entries make empty segments.
    """

    prediction_positions: Tensor
    """Indices into the flattened tokens, (P,), ascending, all different; where the label is -100, any others."""

    labels: Tensor
    """Ids to predict, (P,); -100 is not counted."""

    window_predictions: int
    """Predictions of this rank in the whole optimizer step, over all its micro-batches."""

    num_predictions: int
    """Predictions of this micro-batch."""

    num_real_tokens: int
    """Tokens of this micro-batch that are no padding, special tokens included."""

    sum_squared_lengths: int
    """Sum over the segments of this micro-batch of their squared length (attention FLOPs)."""

    sum_prediction_lengths: int
    """Sum over the predictions of this micro-batch of the length of their segment (those of the last block)."""

    row_numbers: Tensor
    """Run-wide numbers of the rows, (R,)."""

    first_slot_key: int
    """Row number of the first row; it seeds dropout."""

    max_seqlen: int
    """Bound of the segment lengths: S."""

    step: int
    """Optimizer step that the batch belongs to; -1 where there is none (validation)."""

    token_pairs_in_window: int = 0
    """Pairs of tokens of this micro-batch that see one another in local layers (attention FLOPs)."""

    token_type_ids: Tensor | None = None
    """Pairs: 0 up to the end of a segment's first part, 1 in its second, 0 in padding, (R, S)."""

    pair_slots: Tensor | None = None
    """Pairs: for K segments the place in ``prediction_positions`` of their first token, ascending, all different, (K,).
    Where the label is -100, any others. K is the length of ``cu_seqlens`` without the last entry."""

    pair_labels: Tensor | None = None
    """Pairs: whether the second part follows the first, 0, or not, 1, (K,); -100 is not counted."""

    decoder_input_ids: Tensor | None = None
    """Encoder and decoder: what the decoder reads, (R, S); the other fields of this kind are then the encoder's."""

    decoder_position_ids: Tensor | None = None
    """Positions of the decoder, (R, S)."""

    decoder_cu_seqlens: Tensor | None = None
    """int32, segments of the decoder, as many as the encoder has: those of one number belong together."""

    num_encoder_tokens: int = 0
    """Tokens that the encoder reads in this micro-batch."""

    sum_squared_encoder_lengths: int = 0
    """Sum over its segments of their squared length."""

    sum_cross_products: int = 0
    """Sum over the segments of the encoder's length times the decoder's."""

    uniforms: Tensor | None = None
    """Replaced-token detection: fp32 (P,), in [0, 1), a number for every prediction, by its row and place."""

    is_real: Tensor | None = None
    """Replaced-token detection and models that run padded: bool (R, S), false in padding."""

    decoder_is_real: Tensor | None = None
    """Encoder and decoder that run padded: the same of the decoder; ``is_real`` is then the encoder's."""

    window_real_tokens: int = 0
    """Tokens of this rank in the whole optimizer step that are no padding."""

    window_pairs: int = 0
    """Pairs of this rank in the whole optimizer step."""

    num_pairs: int = 0
    """Pairs of this micro-batch."""

    task: int = 0
    """Number of the objective in a mixture that the step has."""

    row_digests: Tensor | None = None
    """uint8 (R, 32), one sha256 a row, where asked for."""

    def window_counts(self, terms: Sequence[Term]) -> list[int]:
        """What the means of these terms are over, of this rank in the whole optimizer step."""
        return [getattr(self, f"window_{term.counts}") if term.task == self.task else 0 for term in terms]

    def to(self, device: torch.device | str) -> Self:
        """The batch with what the model and the loss need on ``device``, copied without waiting.

        Row numbers and digests stay on the CPU, where reading them waits for nothing.
        """
        if self.input_ids.device == torch.device(device):
            return self
        if torch.device(device).type == "cuda" and not self.input_ids.is_pinned():
            # Worker processes cannot pin. From pageable memory CUDA copies only when all work before is done.
            return self.pin_memory().to(device)
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self._moving().items()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which copies to a GPU need not wait."""
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self._moving().items()}
        return replace(self, **pinned)

    def _moving(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in _ON_DEVICE}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


_ON_DEVICE: Final = (
    "input_ids",
    "position_ids",
    "cu_seqlens",
    "prediction_positions",
    "labels",
    "token_type_ids",
    "pair_slots",
    "pair_labels",
    "decoder_input_ids",
    "decoder_position_ids",
    "decoder_cu_seqlens",
    "uniforms",
    "is_real",
    "decoder_is_real",
)
