"""ELECTRA's two models in one: a small masked language model, and one that tells which tokens it has replaced.

Letters: T tokens of a packed row, P predicted positions, V vocabulary.

Both are stock classes and share the embeddings (Clark et al. 2020, section 3.2, "weight sharing"); the generator's last
layer shares the weights of the words with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.families import generator_config
from pipeline.models.flops import flops_per_step, num_parameters
from pipeline.models.packed import packed_logits, packed_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS: Final = ("discriminator", "generator")
_SHARED: Final = "electra.embeddings."


class ReplacedTokenModel(nn.Module):
    """A discriminator and the generator that it is trained beside.

    Args:
        discriminator: stock class; its embeddings are those of both.
        generator: stock class with embeddings of the same width.
    """

    def __init__(self, discriminator: PreTrainedModel, generator: PreTrainedModel) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        cast("Any", generator).electra.embeddings = cast("Any", discriminator).electra.embeddings
        generator.tie_weights()

    @property
    def config(self) -> Any:
        """Of the discriminator."""
        return self.discriminator.config

    def get_input_embeddings(self) -> nn.Module:
        """Of both."""
        return self.discriminator.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Of the generator, which predicts tokens."""
        return self.generator.get_output_embeddings()


def build_replaced_token_model(
    config: ModelConfig,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    seed: int | None = None,
    device: str | None = None,
) -> ReplacedTokenModel:
    """Both stock models with their stock initial weights; arguments and errors as of ``build_model``.

    Args:
        config: of the discriminator; ``generator_size`` says how wide the other is.
    """
    shape: dict[str, Any] = {"vocab_size": vocab_size, "special_ids": special_ids, "device": device}
    discriminator = build_model(config, **shape, head="discriminator", seed=seed)
    generator = build_model(generator_config(config), **shape, seed=None if seed is None else seed + 1)
    return ReplacedTokenModel(discriminator, generator).train()


def replaced_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """A token for every position, drawn from the generator's distribution by its inverse: int64 (P,).

    Args:
        logits: (P, V), fp32 at least.
        uniforms: (P,), in [0, 1): the same number draws the same token from the same distribution.
    """
    distribution = torch.softmax(logits, -1).cumsum(-1)  # P V
    threshold = uniforms[:, None].to(distribution.dtype) * distribution[:, -1:]  # P 1
    return torch.searchsorted(distribution, threshold, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def generator_logits(
    model: ReplacedTokenModel,
    input_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prediction_positions: Tensor,
) -> Tensor:
    """Logits (P, V) of the generator; arguments as of ``packed_logits``."""
    return packed_logits(model.generator, input_ids, position_ids, cu_seqlens, max_seqlen, prediction_positions)


def discriminator_logits(
    model: ReplacedTokenModel, input_ids: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """How surely every token of a packed row was replaced, as a logit, (T,); arguments as of ``packed_logits``."""
    return packed_outputs(model.discriminator, input_ids, position_ids, cu_seqlens, max_seqlen).logits.squeeze(0)


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one of the :data:`PARTS` by the names of its stock class."""
    own = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
    shared = f"discriminator.{_SHARED}"
    return own | {
        name.removeprefix("discriminator."): value for name, value in weights.items() if name.startswith(shared)
    }


def replaced_token_flops(config: ModelConfig, vocab_size: int, *counts: int) -> float:
    """FLOPs of forward and backward of both, from the counts of ``flops_per_step``; drawing tokens is left out."""
    generator = flops_per_step(generator_config(config), vocab_size, *counts)
    return generator + flops_per_step(config, vocab_size, *counts, head="discriminator")


def num_replaced_token_parameters(config: ModelConfig, vocab_size: int, pad_id: int = 1) -> int:
    """Parameters of both, shared ones once."""
    generator = generator_config(config)
    discriminator = num_parameters(config, vocab_size, pad_id, head="discriminator")
    width = int(generator.extra["embedding_size"])
    rows = (config.vocab_size or vocab_size) + config.max_positions + int(config.extra.get("type_vocab_size", 2))
    shared = rows * width + 2 * width  # and their norm
    return discriminator + num_parameters(generator, vocab_size, pad_id) - shared
