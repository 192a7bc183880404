"""A model that another one learns from: a Hugging Face folder, made to read packed rows, without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pipeline.base.errors import UserError
from pipeline.config.start import StartConfig
from pipeline.models.attention import ATTENTION_NAME, register_attention
from pipeline.models.auto import one_line
from pipeline.models.drop_ins import install_drop_ins
from pipeline.models.families import FAMILIES
from pipeline.models.hooks import prepare_packed
from pipeline.models.starting_points import fit_weights, read_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def teacher_type(folder: Path, config: Mapping[str, Any]) -> str:
    """The `model_type` of a teacher, a family of the table.

    Raises:
        UserError: no model of one that is packed here, or one with a decoder.
    """
    kind = str(config.get("model_type"))
    packed = [name for name, family in FAMILIES.items() if not (family.padded or family.has_decoder)]
    if kind not in packed:
        raise UserError(
            f"objective.teacher: {folder} is a model of type {kind!r}; teachers can be {', '.join(packed)}."
        )
    return kind


def read_teacher(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The stock class with a head for tokens, in evaluation mode, for ``packed_logits``.

    Raises:
        UserError: no model of a family that is packed here, damaged, or without such a head.
    """
    import transformers

    where = f"objective.teacher: {folder}"
    source = read_pretrained(folder, "objective.teacher")
    family = FAMILIES[teacher_type(folder, source.config)]
    register_attention()
    try:
        config = getattr(transformers, family.config_class).from_dict(dict(source.config))
        config._attn_implementation = ATTENTION_NAME
        with torch.random.fork_rng(devices=[]):  # initial weights that are overwritten
            model: PreTrainedModel = getattr(transformers, family.model_class)(config)
    except Exception as error:  # whatever a class raises at values that are none of its
        raise UserError(f"{where}: transformers refuses its config.json ({one_line(error)}).") from None
    before = (model.config.pad_token_id or 0) + 1 if family.positions_follow_padding else 0
    try:
        fitted = fit_weights(source, model, StartConfig(), positions_before=before)
    except UserError as error:
        raise UserError(f"{where}: its weights are not those of its config.json ({error})") from None
    if fitted.fresh:
        raise UserError(
            f"{where} has no head for tokens ({', '.join(fitted.fresh[:3])} are missing), so it "
            "says nothing of them. Take the model that it was pretrained as."
        )
    model.load_state_dict(fitted.weights, strict=False)
    model.tie_weights()
    install_drop_ins(model)
    prepare_packed(model, narrow=True)
    converted: PreTrainedModel = cast("Any", model).to(dtype)
    return converted.eval().requires_grad_(False)
