"""A stock transformers model from the config: nothing is subclassed or replaced."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.config.hugging_face import AUTO
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.attention import ATTENTION_NAME, register_attention
from pipeline.models.auto import auto_config, family_entry, known_entry
from pipeline.models.drop_ins import install_drop_ins
from pipeline.models.families import FAMILIES, model_class_name, num_positions
from pipeline.models.flop_formulas import register_flop_formulas
from pipeline.models.hooks import prepare_packed, set_family
from pipeline.models.mup import scale_initial_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ACTIVATION_KEYS = ("hidden_act", "activation_function")
_REFUSED_KEYS = {
    "is_decoder": "choose the family instead",
    "add_cross_attention": "packed rows have no second sequence",
    "tie_word_embeddings": "the head shares the weights of the embedding, as published",
    "reorder_and_upcast_attn": "only the stock eager attention reads it",
    "return_dict": "the packed forward reads the outputs by name",
    "pad_token_id": "special tokens come from the tokenizer",
    "bos_token_id": "special tokens come from the tokenizer",
    "eos_token_id": "special tokens come from the tokenizer",
}


def build_model(
    config: ModelConfig,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int | None],
    head: Head = "tokens",
    seed: int | None = None,
    device: str | None = None,
) -> PreTrainedModel:
    """The stock class of the family, its stock initial weights (muP: scaled), in training mode, for ``packed_logits``.

    With a seed, the weights depend on config and seed alone and torch's generator of the CPU is left as it was; without
    one they are drawn from that generator.

    Args:
        vocab_size: ids of the tokenizer; the embedding has ``config.vocab_size`` rows where that is set.
        special_ids: ids by the names pad, cls, sep, mask, bos, eos, unk; None where the tokenizer has none.
        head: of the class.
        device: where the parameters are made, e.g. ``"meta"`` for shapes only. Default: torch's default device.

    Raises:
        UserError: see :func:`hf_config`.
    """
    import transformers

    hf = hf_config(config, vocab_size=vocab_size, special_ids=special_ids, head=head)
    register_attention()
    register_flop_formulas()
    family = family_entry(config, head)
    if family.padded is None:
        hf._attn_implementation = ATTENTION_NAME
    model_class = getattr(transformers, model_class_name(config, head))
    with (
        torch.random.fork_rng(devices=[], enabled=seed is not None),
        torch.device(device or torch.get_default_device()),
    ):
        if seed is not None:
            torch.manual_seed(seed)
        model = model_class(hf)
    if config.mup_base_width is not None:
        scale_initial_weights(model, config)
    if config.family == AUTO:
        set_family(model, family)
    if config.drop_ins and (config.family != AUTO or known_entry(config, head) is not None):
        install_drop_ins(model)
    prepare_packed(model, narrow=config.drop_ins and head != "discriminator")
    return model.train()


def hf_config(
    config: ModelConfig, *, vocab_size: int, special_ids: Mapping[str, int | None], head: Head = "tokens"
) -> PreTrainedConfig:
    """The Hugging Face config, as it is exported: it names no attention function of ours.

    Raises:
        UserError: fewer embedding rows than the tokenizer has ids; a special token that the family needs is missing;
            a key of ``model.extra`` that the config class does not have or that cannot be changed, or a value that is
            none of its.
    """
    import transformers

    rows = vocab_size if config.vocab_size is None else config.vocab_size
    if rows < vocab_size:
        raise UserError(
            f"model.vocab_size: {rows} is smaller than the tokenizer of the corpus, which has {vocab_size} ids: "
            f"set it to {vocab_size} or more, or leave it out."
        )
    if config.family == AUTO:
        return auto_config(config, head, rows, special_ids)
    family = FAMILIES[config.family]
    keys: dict[str, Any] = {"vocab_size": rows, **family.defaults}
    for name, hf_names in family.config_names.items():
        keys.update(dict.fromkeys(hf_names, getattr(config, name)))
    for hf_name, tokens in family.token_ids.items():
        found = [special_ids[token] for token in tokens if special_ids.get(token) is not None]
        if not found:
            raise UserError(
                f"model.family: {config.family} needs a {' or '.join(tokens)} token and the tokenizer of the corpus "
                "has none: use a tokenizer made for this family, or another family."
            )
        keys[hf_name] = found[0]
    positions = num_positions(config, keys.get("pad_token_id") or 0)
    keys.update(dict.fromkeys(family.config_names["max_positions"], positions))
    config_class = getattr(transformers, family.config_class)
    _check_extra(config, vars(config_class()))
    return config_class(**{**keys, **config.extra, "architectures": [model_class_name(config, head)]})


def stock_state_dict(model: PreTrainedModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Weights by their Hugging Face names, tied ones once: what ``save_pretrained`` writes.

    Args:
        state: weights gathered elsewhere under the names of ``model.state_dict()`` (ZeRO-3); default: the model's own.
    """
    kept = {name for name, _ in model.named_parameters()}  # each tied parameter under its first name
    buffers = {name for name, _ in model.named_buffers()}
    whole = model.state_dict() if state is None else state
    return {name: tensor.detach() for name, tensor in whole.items() if name in kept or name in buffers}


def _check_extra(config: ModelConfig, known: Mapping[str, Any]) -> None:
    for name in config.extra:
        if name in _REFUSED_KEYS:
            raise UserError(f"model.extra.{name}: cannot be changed here: {_REFUSED_KEYS[name]}. Remove it.")
        if name not in known or name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "."
            raise UserError(
                f"model.extra.{name}: {FAMILIES[config.family].config_class} has no such key{hint} "
                "Correct the name or remove it."
            )
        _check_value(name, config.extra[name], known[name])


def _check_value(name: str, value: Any, default: Any) -> None:
    from transformers.activations import ACT2FN

    kinds = (int, float) if isinstance(default, float) else type(default)
    if default is not None and not isinstance(value, kinds):
        raise UserError(
            f"model.extra.{name}: {value!r} is a {type(value).__name__}; it must be a {type(default).__name__}, as the "
            f"default {default!r}."
        )
    if name in _ACTIVATION_KEYS and value not in ACT2FN:
        raise UserError(f"model.extra.{name}: transformers has no activation `{value}`; it has {', '.join(ACT2FN)}.")
