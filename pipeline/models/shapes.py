"""Our fields of a Hugging Face config, for counting. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.config.model import ModelConfig
from pipeline.models.families import FAMILIES

_EXTRA_KEYS: Final = ("embedding_size", "type_vocab_size", "local_attention")


def model_config_of(hf: Mapping[str, Any]) -> ModelConfig:
    """Our fields of a Hugging Face config, for counting; its class's defaults where it names nothing.

    Raises:
        KeyError: the family is not in the table.
    """
    family = FAMILIES[hf["model_type"]]
    found = {
        name: hf[keys[0]]
        for name, keys in family.config_names.items()
        if keys
        and hf.get(keys[0]) is not None
        and name in ("hidden_size", "num_layers", "num_heads", "max_positions", "intermediate_size")
    }
    found.setdefault("intermediate_size", 4 * found.get("hidden_size", ModelConfig.hidden_size))
    extra = {key: hf[key] for key in _EXTRA_KEYS if key in hf}
    return ModelConfig(family=hf["model_type"], vocab_size=hf.get("vocab_size"), extra=extra, **found)
