"""A model that another one learns from: a Hugging Face folder, made to read packed rows, without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pipeline.base.errors import UserError
from pipeline.config.start import StartConfig
from pipeline.models.attention import ATTENTION_NAME, register_attention
from pipeline.models.drop_ins import install_drop_ins
from pipeline.models.families import FAMILIES
from pipeline.models.hooks import prepare_packed
from pipeline.models.starting_points import fit_weights, read_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_teacher(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The stock class with a head for tokens, in evaluation mode, for ``packed_logits``.

    Raises:
        UserError: no model of a family that is packed here, damaged, or without such a head.
    """
    import transformers

    source = read_pretrained(folder)
    kind = str(source.config.get("model_type"))
    if kind not in FAMILIES or FAMILIES[kind].padded:
        packed = [name for name, family in FAMILIES.items() if not family.padded]
        raise UserError(
            f"objective.teacher: {folder} is a model of type {kind!r}; teachers can be {', '.join(packed)}."
        )
    family = FAMILIES[kind]
    register_attention()
    config = getattr(transformers, family.config_class).from_dict(dict(source.config))
    config._attn_implementation = ATTENTION_NAME
    with torch.random.fork_rng(devices=[]):  # initial weights that are overwritten
        model: PreTrainedModel = getattr(transformers, family.model_class)(config)
    before = (model.config.pad_token_id or 0) + 1 if family.positions_follow_padding else 0
    fitted = fit_weights(source, model, StartConfig(), positions_before=before)
    if fitted.fresh:
        raise UserError(
            f"objective.teacher: {folder} has no head for tokens ({', '.join(fitted.fresh[:3])} are missing), so it "
            "says nothing of them. Take the model that it was pretrained as."
        )
    model.load_state_dict(fitted.weights, strict=False)
    model.tie_weights()
    install_drop_ins(model)
    prepare_packed(model, narrow=True)
    converted: PreTrainedModel = cast("Any", model).to(dtype)
    return converted.eval().requires_grad_(False)
