"""FLOPs and parameters of a model of family `auto`, from its stock class made without storage.

Letters: M weights of its linear layers outside embeddings and head, H weights of the head's last layer, L layers, E
heads times their width, n_i length of segment i.

Formula for a plain transformer (Kaplan et al. 2020, section 2.1), a multiply-add being two FLOPs:

    forward  = 2 M tokens + 4 E L sum(n_i^2) [/ 2 if causal] + 2 H predictions
    training = 3 forward

L, E come from the standard names of the config (`num_hidden_layers`, `num_attention_heads`, `head_dim` or
`hidden_size`, through the class's `attribute_map`). What is not plain is not counted as it is:

- windows as whole segments;
- layers that share weights once, in M;
- weights that are no linear layer's not at all: experts in one tensor of three dimensions, convolutions, scans; experts
  that are linear layers all, however few a token takes;
- layers without attention (hybrids) as with it, and no attention where the config has no `num_attention_heads` (Mamba).

Of an encoder and a decoder L is the `num_hidden_layers` of the config, the encoder's as a rule (T5, BART), for the
attention of both sides and for that between them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

from pipeline.base.errors import UserError
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.auto import attention_shape, auto_config, class_of, one_line


@dataclass(frozen=True)
class PlainCounts:
    """What the formula needs of a model."""

    parameters: int
    """Tied ones once."""

    matrix_weights: int
    """Of linear layers outside embeddings and head; of encoder and decoder those of the decoder."""

    head_weights: int
    num_layers: int
    attention_width: int
    encoder_weights: int = 0
    """Of encoder and decoder those of the encoder."""


def plain_counts(config: ModelConfig, head: Head, rows: int) -> PlainCounts:
    """Counts of the stock class with an embedding of ``rows`` ids; kept for the process.

    Raises:
        UserError: see :func:`pipeline.models.auto.auto_config`.
    """
    return _counts(json.dumps(config.config, sort_keys=True), head, rows)


@lru_cache(maxsize=16)
def _counts(keys: str, head: Head, rows: int) -> PlainCounts:
    import transformers

    hf = auto_config(ModelConfig(family="auto", config=json.loads(keys)), head, rows, {})
    name = class_of(hf, head)
    try:
        with torch.device("meta"):
            model = getattr(transformers, name)(hf)
    except Exception as error:  # whatever a class raises at values that are none of its
        raise UserError(f"model.config: {name} cannot be made: {one_line(error)}.") from None
    of_head = model.get_output_embeddings()
    encoder = cast("Any", model).get_encoder() if head == "seq2seq" else None
    inside = set() if encoder is None else {id(module) for module in encoder.modules()}
    in_encoder = in_decoder = 0
    for module in model.modules():
        if module is of_head or not _is_linear(module):
            continue
        if id(module) in inside:
            in_encoder += module.weight.numel()
        else:
            in_decoder += module.weight.numel()
    heads, width = attention_shape(hf) or (0, 0)
    return PlainCounts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrix_weights=in_decoder,
        encoder_weights=in_encoder,
        head_weights=0 if of_head is None else of_head.weight.numel(),
        num_layers=int(getattr(hf, "num_hidden_layers", 0)),
        attention_width=heads * width,
    )


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def plain_flops(
    counts: PlainCounts, causal: bool, real_tokens: int, sum_squared_lengths: int, predictions: int
) -> float:
    """FLOPs of forward and backward; arguments as of ``flops_per_step``."""
    attention = 4 * counts.attention_width * counts.num_layers * sum_squared_lengths / (2 if causal else 1)
    return 3.0 * (2 * counts.matrix_weights * real_tokens + attention + 2 * counts.head_weights * predictions)


def plain_seq2seq_flops(
    counts: PlainCounts,
    decoder_tokens: int,
    sum_squared_lengths: int,
    predictions: int,
    encoder_tokens: int,
    sum_squared_encoder_lengths: int,
    sum_cross_products: int,
) -> float:
    """FLOPs of forward and backward of an encoder and a decoder; arguments as of ``seq2seq_flops_per_step``. The
    decoder's projections of what the encoder gives are counted at its own tokens."""
    encoder = 2 * counts.encoder_weights * encoder_tokens
    squares = sum_squared_encoder_lengths + sum_squared_lengths / 2 + sum_cross_products
    attention = 4 * counts.attention_width * counts.num_layers * squares
    decoder = 2 * counts.matrix_weights * decoder_tokens + 2 * counts.head_weights * predictions
    return 3.0 * (encoder + attention + decoder)
