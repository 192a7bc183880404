"""The last block of an encoder, computed where its output is used: at the predicted positions.

Letters: T tokens of the packed row, P predicted positions, K segments, E width of the model, H heads, D head width.

The vocabulary head reads P of T positions, and nothing else reads the last block. So of that block only the keys and
the values are needed at every token; queries, scores, projection and feed-forward layer are needed at P positions. With
15 % of the tokens predicted that is a quarter of the block's work, for the same loss and the same gradient.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from pipeline.models.attention import packed_attention

POSITIONS: Final = "prediction_positions"
"""Keyword argument of the model's forward; stock models hand it on to each block."""


class LastBlock:
    """The forward of the last of BERT's blocks (`BertLayer`, `RobertaLayer`), set in the place of its own.

    All parameters stay in the stock modules, which are called as modules, so that hooks on them (ZeRO-3's) run. Without
    :data:`POSITIONS` it is the stock forward. An object, not a closure, so that copying a model copies the link.
    """

    def __init__(self, block: Any) -> None:
        self.block = block
        self.stock_forward = block.forward

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *arguments: Any, **keywords: Any) -> Any:
        """(1, T, E) -> (1, P, E)."""
        positions = keywords.pop(POSITIONS, None)
        if positions is None:
            return self.stock_forward(hidden, attention_mask, *arguments, **keywords)
        attention = self.block.attention
        attend = attention.self
        # Backward this adds whole rows; `hidden[:, positions]` would sort them on CUDA.
        wanted = hidden.index_select(1, positions)  # 1 P E
        projected = (attend.query(wanted), attend.key(hidden), attend.value(hidden))
        query, key, value = (
            tensor.unflatten(-1, (-1, attend.attention_head_size)).transpose(1, 2) for tensor in projected
        )  # 1 H P D, 1 H T D twice
        cu_seqlens = keywords["cu_seq_lens_k"]
        keywords["cu_seq_lens_q"] = torch.searchsorted(positions, cu_seqlens, out_int32=True)  # K + 1
        context, _ = packed_attention(
            attend,
            query,
            key,
            value,
            attention_mask,
            dropout=attend.dropout.p if attend.training else 0.0,
            scaling=attend.scaling,
            **keywords,
        )  # 1 P H D
        return self.block.feed_forward_chunk(attention.output(context.flatten(-2), wanted))


def narrow_last_block(block: Any) -> None:
    """Compute ``block`` at the predicted positions only, where a model that has it last is given them, ascending."""
    block.forward = LastBlock(block).forward  # of the instance: the class stays stock
