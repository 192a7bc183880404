"""Models that a Hugging Face `config.json` names (family `auto`), and models that run padded. No transformers here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pipeline.config.model import Family, ModelConfig
from pipeline.config.run import RunConfig

AUTO: Final = "auto"

PADDED_FAMILIES: Final[Mapping[Family, str]] = {
    "openai-gpt": "its attention does not go through transformers' attention interface",
}
"""Families of the table that no packed row can be given, and why."""

_NOT_THE_MODEL: Final = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "auto_map")
"""Keys of a `config.json` that say where it comes from, not what the model is."""

_BESIDE_CONFIG: Final = ("family", "config", "vocab_size", "drop_ins", "remap_vocabulary")
"""Fields of the section that count with family `auto`."""

_POSITION_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def read_hugging_face_config(path: str) -> dict[str, Any]:
    """The keys of a `config.json`, or of that in a folder, without those of no meaning to a model with new weights.

    Raises:
        ValueError: with what is wrong with it.
    """
    file = Path(path).expanduser()
    file = file / "config.json" if file.is_dir() else file
    try:
        keys = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); name a `config.json` or its folder.") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}).") from None
    if not isinstance(keys, dict):
        raise ValueError(f"{file} holds no mapping of keys to values, which a Hugging Face config is.")
    return {name: value for name, value in keys.items() if name not in _NOT_THE_MODEL}


def put_in_hugging_face_config(values: dict[str, Any]) -> str | None:
    """Replace the path ``model.config`` among the raw values of a run by the keys of the file, so that the resolved
    config, and with it the run directory, stands by itself. Returns the problem, if there is one."""
    model = values.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("config"), str):
        return None
    try:
        keys = read_hugging_face_config(model["config"])
    except ValueError as error:
        values["model"] = {name: value for name, value in model.items() if name != "config"}
        return f"model.config: {error}"
    values["model"] = {**model, "config": keys}
    return None


def max_positions(model: ModelConfig) -> int | None:
    """The longest row that a model takes; None where its config does not say."""
    if model.family != AUTO:
        return model.max_positions
    found = positions_key(model.config or {})
    return found[1] if found else None


def positions_key(keys: Mapping[str, Any]) -> tuple[str, int] | None:
    """The key of a Hugging Face config that says how many positions there are, and its value; None: it has none."""
    found = ((name, keys.get(name)) for name in _POSITION_KEYS)
    return next(((name, value) for name, value in found if isinstance(value, int) and value > 0), None)


def hugging_face_problems(config: RunConfig) -> Iterator[str]:
    """Problems of family `auto`, and of rows that a model which runs padded does not take."""
    model = config.model
    if model.family in PADDED_FAMILIES:
        yield from one_text_problems(config, PADDED_FAMILIES[model.family])
    if model.family == "openai-gpt" and model.intermediate_size != 4 * model.hidden_size:
        yield (
            f"model.intermediate_size: {model.intermediate_size}: `openai-gpt` has 4 x model.hidden_size "
            f"({4 * model.hidden_size}) and no other."
        )
    if model.family != AUTO:
        if model.config is not None:
            yield f"model.family: `{model.family}` is described by its own fields; set `auto`, or leave config out."
        return
    if model.config is None:
        yield "model.config: required by family `auto`; the path of a Hugging Face `config.json`, or of its folder."
        return
    if not isinstance(model.config.get("model_type"), str):
        yield "model.config: names no `model_type`, by which transformers finds the class; add it."
    if "quantization_config" in model.config:
        yield "model.config.quantization_config: quantised weights cannot be trained here; remove it."
    for field in dataclasses.fields(ModelConfig):
        value = getattr(model, field.name)
        if field.name not in _BESIDE_CONFIG and value != getattr(ModelConfig(), field.name):
            yield f"model.{field.name}: {value!r}: model.config names the shape; change it there and leave this out."
    for name in ("stack", "every_block", "longer_positions"):
        if getattr(config.start, name) != getattr(type(config.start)(), name):
            yield f"start.{name}: needs a family whose blocks and positions are known; leave it out with `auto`."


def one_text_problems(config: RunConfig, reason: str) -> Iterator[str]:
    """What a model that runs padded needs and the config does not give: one text a row.

    Args:
        reason: why it runs padded.
    """
    data = config.data
    denoises = any(task.name == "denoise" for task in config.objective.tasks)
    if data.packing == "one_document" or (data.cross_document_attention and not denoises):
        return
    joined = "" if denoises else ", or data.cross_document_attention: true"
    yield (
        f"data.packing: `{data.packing}` puts several texts into a row, and this model runs padded, with one text a "
        f"row ({reason}); set `one_document`{joined}."
    )
