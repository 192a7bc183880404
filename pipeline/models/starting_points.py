"""Weights of another model as the first ones of this: names, blocks, positions and vocabulary are made to fit.

Letters: V rows of this model's vocabulary, E width of its embeddings, L blocks, S positions.

What cannot be made to fit is refused with the difference; nothing is loaded in part. Only names and shapes decide, so
that weights of any class of the family will do: of its bare encoder, say, for a model with a head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.config.start import LongerPositions, StartConfig
from pipeline.models.blocks import transformer_blocks
from pipeline.models.build import stock_state_dict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEAN: Final = -1
"""In a mapping of the vocabulary: the row is the mean of the source's."""

_MOST_NAMES: Final = 6
_POSITION_TABLES: Final = ("position_embeddings.weight", "wpe.weight")
# Of the config, what changes the function of a model without changing a shape; the rest shows in the tensors.
_TELLING_KEYS: Final = (
    "num_attention_heads", "hidden_act", "hidden_activation", "activation", "activation_function", "layer_norm_eps",
    "layer_norm_epsilon", "norm_eps", "local_attention", "layer_types", "rope_parameters", "sinusoidal_pos_embds",
    "num_hidden_groups", "inner_group_num", "scale_attn_by_inverse_layer_idx",
)  # fmt: skip

# DistilBERT is BERT without token types and pooler (Sanh et al. 2019, section 3). What stands before the last dot.
_OF_BERT: Final = {
    "bert.embeddings.word_embeddings": "distilbert.embeddings.word_embeddings",
    "bert.embeddings.position_embeddings": "distilbert.embeddings.position_embeddings",
    "bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm",
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
    "cls.predictions": "vocab_projector",
}
_OF_BERTS_BLOCK: Final = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_BERTS_BLOCK: Final = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.*)")


def distilbert_name(name: str) -> str | None:
    """DistilBERT's name of a parameter of BERT; None: it has no such."""
    module, _, last = name.rpartition(".")
    if match := _BERTS_BLOCK.fullmatch(module):
        told = _OF_BERTS_BLOCK.get(match[2])
        return None if told is None else f"distilbert.transformer.layer.{match[1]}.{told}.{last}"
    told = _OF_BERT.get(module)
    return None if told is None else f"{told}.{last}"


_TRANSLATIONS: Final[Mapping[tuple[str, str], Callable[[str], str | None]]] = {("bert", "distilbert"): distilbert_name}


@dataclass(frozen=True)
class Source:
    """Weights that a model is to begin with."""

    location: Path
    """For messages."""

    weights: Mapping[str, Tensor]
    """By their Hugging Face names; of tied ones any name will do."""

    config: Mapping[str, Any]
    """The Hugging Face config, as far as it is known."""


@dataclass(frozen=True)
class Fitted:
    """What became of them."""

    weights: dict[str, Tensor]
    """By the names and in the shapes of the model."""

    fresh: list[str]
    """Parameters that the source does not have: they keep their initial weights."""

    unused: list[str]
    """Tensors of the source, by its names, that nothing was read of: others than the model's, or of blocks left out."""


def read_pretrained(folder: Path, setting: str = "start.from_pretrained") -> Source:
    """The weights of a Hugging Face folder.

    Args:
        setting: that names it, for messages.

    Raises:
        UserError: there is none, its weights are no safetensors, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    what = f"{setting}: {folder}"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json holds no mapping of keys to values")
        index = folder / "model.safetensors.index.json"
        files = ["model.safetensors"]
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        weights: dict[str, Tensor] = {}
        for name in files:
            if Path(name).name != name:
                raise UserError(f"{what}: its index names a file outside of it ({name}).")
            with safe_open(folder / name, "pt") as file:
                names: list[str] = file.keys()
                weights.update({key: file.get_tensor(key) for key in names})
    except FileNotFoundError as error:
        missing = Path(str(error.filename or error).rpartition("/")[2]).name
        hint = ""
        if list(folder.glob("*.bin")) or list(folder.glob("*.h5")):
            hint = " Weights in other formats can run code when they are read: save them with `save_pretrained` first."
        raise UserError(
            f"{what} is no Hugging Face model with safetensors: {missing or 'a file'} is missing.{hint}"
        ) from None
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{what} is damaged ({error}). Copy or download it again.") from None
    return Source(folder, weights, config)


def fit_weights(
    source: Source, model: PreTrainedModel, start: StartConfig, rows: Tensor | None = None, *, positions_before: int = 0
) -> Fitted:
    """Make the weights of ``source`` those of ``model``; nothing is changed in place.

    Args:
        rows: int64 (V,), the source's row for every id, :data:`MEAN` for the mean of all; None: as they are.
        positions_before: rows of the position table before the first position (RoBERTa: padding id + 1).

    Raises:
        UserError: with every difference, and what to set.
    """
    _check_config(source, model)
    expected = {name: tuple(tensor.shape) for name, tensor in stock_state_dict(model).items()}
    given = _by_names_of(model, translated(source, model), expected)
    if start.stack > 1 or start.every_block > 1:
        given = _restacked(given, model, start, source.location)
    vocabulary = _vocabulary_names(model)
    problems, weights = [], {}
    for name, shape in expected.items():
        if name not in given:
            continue
        tensor = given[name]
        if name in vocabulary and rows is not None:
            tensor = _mapped(tensor, rows)
        if name.endswith(_POSITION_TABLES) and len(tensor) < shape[0]:
            tensor = _longer(tensor, shape[0], positions_before, start.longer_positions)
        if tuple(tensor.shape) != shape:
            problems.append(f"{name} is {tuple(tensor.shape)} there, {shape} here")
        weights[name] = tensor
    fresh = sorted(expected.keys() - weights.keys())
    essential = [name for name in fresh if _belongs_to_base(model, name)]
    if essential:
        problems.append(f"missing there: {_some_of(essential)}")
    if problems:
        raise UserError(
            f"start: the weights of {source.location} do not fit this model: {'; '.join(problems[:_MOST_NAMES])}"
            f"{_more(len(problems) - _MOST_NAMES)}. Give `model` the shape of the source; `start.stack` makes it "
            "deeper, `start.longer_positions` longer, `start.extend_vocabulary` and `model.remap_vocabulary` give it "
            "other ids."
        )
    read = {id(given[name]) for name in weights}
    return Fitted(weights, fresh, sorted(source.weights.keys() - _read_names(source, model, read)))


def _read_names(source: Source, model: PreTrainedModel, read: set[int]) -> set[str]:
    """Names of a source whose tensors, of these identities, went into a model, or are others of tied ones that did."""
    names = {name for name, tensor in source.weights.items() if id(tensor) in read}
    tied: dict[int, set[str]] = {}
    prefix = f"{model.base_model_prefix}."
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), set()).update((name, name.removeprefix(prefix)))
    return names.union(*(same for same in tied.values() if same & names))


def translated(source: Source, model: PreTrainedModel) -> Mapping[str, Tensor]:
    """The weights by the names of the model's family, where that is another that they can be told in."""
    pair = (str(source.config.get("model_type")), str(model.config.model_type))
    if pair not in _TRANSLATIONS:
        return source.weights
    prefix = f"{pair[0]}."
    bare = not any(name.startswith(prefix) for name in source.weights)
    found = {}
    for name, tensor in source.weights.items():
        told = _TRANSLATIONS[pair](f"{prefix}{name}" if bare else name)
        if told is not None:
            found[told] = tensor
    return found


def _check_config(source: Source, model: PreTrainedModel) -> None:
    """Refuse a model of another kind, whose weights might fit by their shapes."""
    there, here = source.config.get("model_type"), model.config.model_type
    if (there, here) in _TRANSLATIONS:
        heads = source.config.get("num_attention_heads"), model.config.num_attention_heads
        if heads[0] != heads[1]:
            raise UserError(f"start: {source.location} has {heads[0]} heads, this model {heads[1]} (model.num_heads).")
        return
    if there is not None and there != here:
        raise UserError(
            f"start: {source.location} is a model of type {there!r}, this run's is {here!r} (model.family). Weights of "
            "one cannot be those of the other."
        )
    ours = model.config.to_dict()
    differences = [
        f"{key}: {source.config[key]!r} there, {ours[key]!r} here"
        for key in _TELLING_KEYS
        if key in source.config
        and key in ours
        and source.config[key] != ours[key]
        and not (key == "layer_types" and source.config[key] is None)
    ]
    if differences:
        raise UserError(
            f"start: the model of {source.location} computes something else than this run's: {'; '.join(differences)}. "
            "Set the model's fields, or `model.extra`, to what they are there."
        )


def _by_names_of(
    model: PreTrainedModel, weights: Mapping[str, Tensor], expected: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The weights by this model's names: with the prefix that a bare encoder leaves out, tied ones by the name kept."""
    prefix = f"{model.base_model_prefix}."
    bare = not any(name.startswith(prefix) for name in weights)
    named = {f"{prefix}{name}" if bare else name: tensor for name, tensor in weights.items()}
    same: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        same.setdefault(id(tensor), []).append(name)
    for names in same.values():
        found = [name for name in names if name in named]
        for kept in (name for name in names if name in expected):
            if found and kept not in named:
                named[kept] = named[found[0]]
        for other in found:
            if other not in expected:
                del named[other]
    return named


def _restacked(
    weights: Mapping[str, Tensor], model: nn.Module, start: StartConfig, location: Path
) -> dict[str, Tensor]:
    """Blocks of the source one after another again and again, or every so-manieth of them."""
    blocks = transformer_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks[0]).rpartition(".")[0]
    pattern = re.compile(re.escape(path) + r"\.(\d+)\.(.*)")
    of_blocks: dict[int, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = pattern.fullmatch(name)
        if match:
            of_blocks.setdefault(int(match[1]), {})[match[2]] = tensor
        else:
            others[name] = tensor
    chosen = [*range(0, len(of_blocks), start.every_block)] * start.stack
    if len(chosen) != len(blocks):
        key = "start.stack" if start.stack > 1 else "start.every_block"
        raise UserError(
            f"{key}: of the {len(of_blocks)} blocks of {location} it makes {len(chosen)}, and this model has "
            f"{len(blocks)} (model.num_layers); set that to {len(chosen)}."
        )
    return others | {
        f"{path}.{number}.{name}": tensor
        for number, block in enumerate(chosen)
        for name, tensor in of_blocks[block].items()
    }


def _vocabulary_names(model: PreTrainedModel) -> set[str]:
    """Parameters with a row for every id, under all their names."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    of_vocabulary = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in of_vocabulary}


def _mapped(tensor: Tensor, rows: Tensor) -> Tensor:
    """Row i of the result is row ``rows[i]`` of ``tensor`` (V, ...), or their mean."""
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    chosen = tensor.index_select(0, rows.clamp(min=0))
    return torch.where((rows == MEAN).view(-1, *[1] * (tensor.dim() - 1)), mean, chosen)


def _longer(table: Tensor, num_rows: int, before: int, how: LongerPositions) -> Tensor:
    """A position table (S, E) with more rows; the first ``before`` stay."""
    if how == "refuse":
        return table
    first, positions = table[:before], table[before:]
    wanted = num_rows - before
    if how == "tile":
        repeated = positions.repeat(-(-wanted // len(positions)), 1)[:wanted]
        return torch.cat([first, repeated])
    stretched = nn.functional.interpolate(
        positions.float().T[None], size=wanted, mode="linear", align_corners=True
    )  # 1 E wanted
    return torch.cat([first, stretched[0].T.to(table.dtype)])


def _belongs_to_base(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter is of the body, not of a head or a pooler, which a source may lack."""
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name


def _some_of(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + _more(len(names) - _MOST_NAMES)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
