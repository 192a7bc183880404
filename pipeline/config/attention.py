"""Which attention kernel a GPU can run, from the config alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.config.hugging_face import PADDED_FAMILIES
from pipeline.config.run import ModelConfig, PrecisionName

FLASH_WIDTH_MULTIPLE: Final = 8
FLASH_MAX_HEAD_WIDTH: Final = 256
"""Head widths of torch's flash attention for packed rows."""


def reasons_against_flash(model: ModelConfig, precision: PrecisionName) -> Iterator[str]:
    """Why flash attention for packed rows cannot run on CUDA: key, value and what would do; nothing where it can, or
    where a model runs padded, with the attention of its class."""
    if model.family in PADDED_FAMILIES:
        return
    if model.attention_dropout > 0:
        yield (
            f"model.attention_dropout: {model.attention_dropout}: flash attention for packed rows has no dropout; 0 is "
            "fast, and model.hidden_dropout stays"
        )
    if precision == "fp32":
        yield "train.precision: `fp32`: flash attention takes `bf16` and `fp16` only"
    width = model.hidden_size // model.num_heads
    if width % FLASH_WIDTH_MULTIPLE or width > FLASH_MAX_HEAD_WIDTH:
        yield (
            f"model.num_heads: {model.num_heads} heads are {width} wide, and flash attention takes multiples of "
            f"{FLASH_WIDTH_MULTIPLE} up to {FLASH_MAX_HEAD_WIDTH}"
        )
