"""Models that a Hugging Face `config.json` names (family `auto`): their config, their class, their table entry.

The class is that of `AutoModelForMaskedLM`, `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`, as the objective asks.
What the table of families says of the others is found out by a trial (:mod:`.trial`), once a process.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pipeline.base.errors import UserError
from pipeline.config.hugging_face import AUTO
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.families import FAMILIES, HEADS, Family
from pipeline.models.shapes import model_config_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

AUTO_CLASSES: Final[Mapping[Head, str]] = {
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}

_FALLBACK_TOKENS: Final = {"bos": ("bos", "cls"), "eos": ("eos", "sep"), "cls": ("cls", "bos"), "sep": ("sep", "eos")}
"""What takes the place of a special token that the tokenizer has not."""


def auto_config(
    config: ModelConfig, head: Head, rows: int, special_ids: Mapping[str, int | None], **changes: Any
) -> PreTrainedConfig:
    """The Hugging Face config of family ``auto``, for ``rows`` ids, with the special tokens of a tokenizer.

    Args:
        head: whose class it is for; for next tokens the model is made a decoder, where its config knows the word.
        special_ids: as for ``build_model``.
        changes: keys that win over those of the file.

    Raises:
        UserError: transformers has no such model, no such class of it, or refuses a value.
    """
    from transformers import CONFIG_MAPPING

    keys = dict(config.config or {})
    kind = keys.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=1)
        hint = f" Did you mean `{near[0]}`?" if near else " A newer transformers may have it."
        raise UserError(f"model.config: transformers has no model of type {kind!r}.{hint}")
    config_class = CONFIG_MAPPING[kind]
    try:
        default = config_class()
        tokens = _token_keys({**vars(default), **keys}, head, special_ids)
        if hasattr(default, "is_decoder") and head != "seq2seq":
            tokens["is_decoder"] = head == "causal"
        made: PreTrainedConfig = config_class.from_dict({**keys, "vocab_size": rows, **tokens, **changes})
    except Exception as error:  # whatever a class raises at values that are none of its
        raise UserError(f"model.config: transformers refuses it ({one_line(error)}); correct the file.") from None
    made.architectures = [class_of(made, head)]
    if (inner := getattr(made, "text_config", None)) is not None:
        raise UserError(
            f"model.config: a model of type `{kind}` reads more than text. Name the config of its text model: the keys "
            f"under `text_config`, with model_type `{inner.model_type}`."
        )
    return made


def attention_shape(hf: PreTrainedConfig) -> tuple[int, int] | None:
    """Heads and their width by the standard names of a config; None: it has none of them, as of models without
    attention (Mamba)."""
    heads = getattr(hf, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        return None
    width = getattr(hf, "head_dim", None) or getattr(hf, "hidden_size", 0) // heads
    return heads, int(width)


def _token_keys(known: Mapping[str, Any], head: Head, special_ids: Mapping[str, int | None]) -> dict[str, Any]:
    """The special-token keys that a config class knows, from the tokenizer; None where that has no such token."""
    found: dict[str, Any] = {}
    for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk"):
        if f"{name}_token_id" in known:
            ids = [special_ids.get(token) for token in _FALLBACK_TOKENS.get(name, (name,))]
            found[f"{name}_token_id"] = next((number for number in ids if number is not None), None)
    if head == "causal" and known.get("pad_token_id") is None:
        found["pad_token_id"] = None  # stock forwards would look for it in the ids, a wait for the GPU
    if head == "seq2seq":
        found["decoder_start_token_id"] = found.get("eos_token_id")
        if known.get("forced_eos_token_id") is not None:
            found["forced_eos_token_id"] = found.get("eos_token_id")
    return found


def class_of(hf: PreTrainedConfig, head: Head) -> str:
    """Name of the class of `transformers` that such a config and head have.

    Raises:
        UserError: there is none.
    """
    import transformers

    name = AUTO_CLASSES[head]
    mapping = getattr(transformers, name)._model_mapping
    if type(hf) not in mapping:
        has = [f"`{objective}`" for objective, other in _OBJECTIVES.items() if _has_class(hf, other)]
        uses = f"it has one for {' and '.join(has)}" if has else "it has none for text"
        raise UserError(
            f"objective.name: transformers has no {name} of type `{hf.model_type}`, a class with a head for "
            f"{HEADS[head]}; {uses}."
        )
    found = mapping[type(hf)]
    first = found[0] if isinstance(found, tuple) else found
    return str(first.__name__)


_OBJECTIVES: Final[Mapping[str, Head]] = {"mlm": "masked", "clm": "causal", "denoise": "seq2seq"}


def _has_class(hf: PreTrainedConfig, head: Head) -> bool:
    import transformers

    return type(hf) in getattr(transformers, AUTO_CLASSES[head])._model_mapping


def one_line(error: Exception) -> str:
    """What an exception says, on one line, cut where it becomes a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def family_entry(config: ModelConfig, head: Head) -> Family:
    """The table entry of a model; of family ``auto`` made by a trial, or that of the class where the table has it.

    Raises:
        UserError: see :func:`auto_config`; or the class cannot be trained here.
    """
    if config.family != AUTO:
        return FAMILIES[config.family]
    return _entry(json.dumps(config.config, sort_keys=True), head, config.drop_ins)


@lru_cache(maxsize=16)
def _entry(keys: str, head: Head, drop_ins: bool) -> Family:
    from pipeline.models.trial import try_out

    config = ModelConfig(family=AUTO, config=json.loads(keys), drop_ins=drop_ins)
    return try_out(config, head, known_entry(config, head))


def known_entry(config: ModelConfig, head: Head) -> Family | None:
    """The table's entry of the class that family ``auto`` has for a head; None: the table has it not."""
    entry = FAMILIES.get((config.config or {}).get("model_type", ""))
    if entry is None:
        return None
    hf = auto_config(config, head, 64, {})
    return entry if class_of(hf, head) == entry.model_class else None


def counted_shape(config: ModelConfig, head: Head) -> ModelConfig:
    """The shape whose FLOPs the closed forms of the table count: the model's own, or for family ``auto`` what its
    config says in the table's words, where the table has its class; else as it is."""
    if config.family != AUTO or known_entry(config, head) is None:
        return config
    shape = model_config_of(auto_config(config, head, 64, {}).to_dict())
    return replace(shape, vocab_size=config.vocab_size, drop_ins=config.drop_ins)
