"""YAML file (+ at most one `base:`) + dotted overrides -> a checked, frozen config. No torch.

All problems of a config (unknown keys, wrong types, contradictions) are reported in one :class:`ConfigError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.base.errors import UserError
from pipeline.config.checks import corpus_problems, run_problems
from pipeline.config.corpus import CorpusConfig
from pipeline.config.hugging_face import put_in_hugging_face_config
from pipeline.config.objective import ObjectiveConfig
from pipeline.config.run import RunConfig
from pipeline.config.synthetic import SyntheticConfig
from pipeline.config.synthetic_checks import synthetic_problems

Config = TypeVar("Config", RunConfig, CorpusConfig, SyntheticConfig)


class ConfigError(UserError):
    """Every problem of one config, in one message."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) > 1 else "")
        super().__init__(f"{where}: {count}\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C where PyYAML has it
    """YAML 1.2 scalars (`1e-4` is a number, `off` and `no` are words) and an error for a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF|nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load, check and freeze the config of a training run.

    Args:
        overrides: command-line words, ``["--data.sequence_length", "128", "--seed=1"]``; they win over the file.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    return _load(Path(path), overrides, RunConfig, run_problems)


def load_corpus_config(path: str | Path, overrides: Sequence[str] = ()) -> CorpusConfig:
    """Load, check and freeze the config of a corpus. Raises as :func:`load_run_config`."""
    return _load(Path(path), overrides, CorpusConfig, corpus_problems)


def load_synthetic_config(path: str | Path, overrides: Sequence[str] = ()) -> SyntheticConfig:
    """Load, check and freeze the config of a synthetic corpus. Raises as :func:`load_run_config`."""
    return _load(Path(path), overrides, SyntheticConfig, synthetic_problems)


def load_any_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig | CorpusConfig | SyntheticConfig:
    """A corpus config is recognised by its ``sources``, a synthetic one by its ``kind``; everything else is a run."""
    layers = read_layers(Path(path))
    if "sources" in layers:
        return load_corpus_config(path, overrides)
    if "kind" in layers:
        return load_synthetic_config(path, overrides)
    return load_run_config(path, overrides)


def to_yaml(config: RunConfig | CorpusConfig | SyntheticConfig) -> str:
    """The resolved config as YAML, every key present; loading it gives an equal config."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def to_plain(config: Any) -> dict[str, Any]:
    """Nested dicts, lists and scalars, as JSON and YAML have them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _plain_items(config)}


def _plain_items(config: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_plain(value)
        elif isinstance(value, list):
            value = [to_plain(item) if dataclasses.is_dataclass(item) else item for item in value]
        yield field.name, value


def leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"data": {"workers": 0}}`` -> ``{"data.workers": 0}``; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_layers(path: Path) -> dict[str, Any]:
    """The file's mapping laid over that of its ``base:`` file (a path beside it), section by section.

    Raises:
        ConfigError: missing file, invalid YAML, a base that names a base.
    """
    values = _read_yaml(path)
    base_name = values.pop("base", None)
    if base_name is None:
        return values
    base_path = path.parent / str(base_name)
    base = _read_yaml(base_path)
    if "base" in base:
        raise ConfigError(str(path), [f"base: {base_path} has a base of its own; at most one level is allowed."])
    return _merged(base, values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(str(path), ["the file does not exist."]) from None
    except IsADirectoryError:
        raise ConfigError(str(path), ["this is a directory; name a YAML file."]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"not UTF-8 text ({error})."]) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"not valid YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(str(path), ["the file must hold `key: value` lines."])
    return {str(name): value for name, value in values.items()}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for name, value in over.items():
        below = result.get(name)
        result[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_overrides(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``--a.b value`` and ``--a.b=value`` -> nested values (YAML scalars) and the problems met."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            problems.append(f"{word!r} is not an override; write `--section.key value`.")
            continue
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                problems.append(f"--{name} needs a value.")
                continue
            text = queue.pop(0)
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            value = text
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        values = _merged(values, nested)
    return values, problems


def _load(
    path: Path, overrides: Sequence[str], config_class: type[Config], check: Callable[[Config], list[str]]
) -> Config:
    extra, problems = parse_overrides(overrides)
    bad: dict[str, str] = {}
    values = _with_shared_settings(_merged(read_layers(path), extra))
    unread = put_in_hugging_face_config(values) if config_class is RunConfig else None
    if unread is not None:
        bad["model.config"] = unread
    config = _build(values, config_class, "", _Reader(config_class, bad))
    problems += bad.values()
    # A value that was refused above stands at its default here: do not complain about it a second time.
    problems += [problem for problem in check(config) if re.split(r"[: \[]", problem)[0] not in bad]
    if problems:
        raise ConfigError(str(path), problems)
    return config


def _with_shared_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The same where the entries of ``objective.mixture`` have what they do not say from ``objective``."""
    objective = values.get("objective")
    if not isinstance(objective, Mapping) or not isinstance(objective.get("mixture"), list):
        return values
    settings = {setting.name for setting in dataclasses.fields(ObjectiveConfig)}
    shared = {name: value for name, value in objective.items() if name in settings}
    entries = [
        {name: value for name, value in shared.items() if _is_read(name, entry.get("name", shared.get("name")))} | entry
        if isinstance(entry, dict)
        else entry
        for entry in objective["mixture"]
    ]
    return values | {"objective": {**objective, "mixture": entries}}


def _is_read(setting: str, objective: Any) -> bool:
    """Whether an entry takes over a setting that some objectives would refuse."""
    readers = {"teacher": ("distil",), "span_mask_rate": ("denoise",), "predict": ("denoise",)}
    return objective in readers.get(setting, (objective,)) and not (setting == "masking" and objective == "clm")


class _Reader:
    """Turns one YAML value into a value of the field's type; notes what is wrong under the value's dotted name."""

    def __init__(self, config_class: type, bad: dict[str, str]) -> None:
        self.bad = bad
        self.valid_keys = _valid_keys(config_class)

    def unknown(self, name: str, dotted: str) -> None:
        self.bad[dotted] = f"{dotted}: unknown key.{_nearest(name, dotted, self.valid_keys)}"

    def no_section(self, value: Any, dotted: str) -> None:
        self.bad[dotted] = f"{dotted}: {value!r} is not a section; write `key: value` lines under it."

    def leaf(self, value: Any, hint: Any, dotted: str) -> Any:
        if value is None and type(None) not in typing.get_args(hint):
            self.bad[dotted] = f"{dotted}: a value is missing; expected {describe_type(hint)}."
            return None
        from jsonargparse import ArgumentError  # here: 0.15 s that `pretrain --help` does not need

        try:
            return _value_parser(hint).parse_object({"value": value}).value
        except ArgumentError:
            self.bad[dotted] = f"{dotted}: {value!r} is not {describe_type(hint)}."
            return None


@functools.cache
def _value_parser(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _build(values: Mapping[str, Any], config_class: type[Any], prefix: str, reader: _Reader) -> Any:
    """The dataclass with every good value of ``values``; what is bad is noted in ``reader`` and left at its default."""
    hints = typing.get_type_hints(config_class)
    good: dict[str, Any] = {}
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if name not in hints:
            reader.unknown(str(name), dotted)
            continue
        hint = hints[name]
        item_class = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                good[name] = _build(value, typing.cast(type, hint), f"{dotted}.", reader)
            else:
                reader.no_section(value, dotted)
        elif dataclasses.is_dataclass(item_class) and isinstance(value, list):
            good[name] = _build_items(value, typing.cast(type, item_class), dotted, reader)
        else:
            parsed = reader.leaf(value, hint, dotted)
            if dotted not in reader.bad:
                good[name] = parsed
    return config_class(**good)


def _build_items(items: list[Any], item_class: type, dotted: str, reader: _Reader) -> list[Any]:
    built = []
    for number, item in enumerate(items):
        if isinstance(item, Mapping):
            built.append(_build(item, item_class, f"{dotted}.{number}.", reader))
        else:
            reader.no_section(item, f"{dotted}.{number}")
    return built


def _nearest(name: str, dotted: str, valid: list[str]) -> str:
    """Nearest valid key: by the whole dotted name, else by its last part (a key put into the wrong section)."""
    plain = re.sub(r"\.\d+\.", ".0.", dotted)
    same_name = [key for key in valid if key.rpartition(".")[2] == name]
    close = same_name or difflib.get_close_matches(plain, valid, n=1, cutoff=0.6)
    if not close:
        by_leaf = {key.rpartition(".")[2]: key for key in valid}
        close = [by_leaf[leaf] for leaf in difflib.get_close_matches(name, list(by_leaf), n=1, cutoff=0.6)]
    return f" Did you mean `{close[0].replace('.0.', '.N.')}`?" if close else " `pretrain config show` lists the keys."


def _valid_keys(config_class: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(config_class).items():
        keys.append(f"{prefix}{name}")
        if dataclasses.is_dataclass(hint):
            keys += _valid_keys(typing.cast(type, hint), f"{prefix}{name}.")
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            keys += _valid_keys(typing.get_args(hint)[0], f"{prefix}{name}.0.")
    return keys


def describe_type(hint: Any) -> str:
    """A type as a person says it: ``an integer``, ``one of `ddp`, `zero1```, ``2 numbers``."""
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(argument) for argument in arguments)
    if origin is tuple:
        return f"a list of {len(arguments)} values, each {describe_type(arguments[0])}"
    if origin is list:
        sections = dataclasses.is_dataclass(arguments[0])
        return "a list of sections" if sections else f"a list, each {describe_type(arguments[0])}"
    return "a mapping of `key: value` lines"
