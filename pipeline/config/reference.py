"""The page `docs/configuration.md`, made from the dataclasses by ``python -m pipeline.config.reference``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator

from pipeline.config.corpus import CorpusConfig
from pipeline.config.loading import describe_type
from pipeline.config.run import RunConfig
from pipeline.config.synthetic import SyntheticConfig

_HEAD = """# Configuration

`pipeline/config/` holds the typed config of a run, of a corpus and of a synthetic one: frozen dataclasses, a
docstring under each field. This page is made from them (`python -m pipeline.config.reference`).

A config is a YAML file with at most one `base:` file under it, whose keys it overrides section by section; dotted
words on the command line override both: `--data.sequence_length 128`. Scalars are YAML 1.2: `1e-4` is a number, `off`
is a word. An unknown key is an error that names the nearest valid one, and all problems of a config come in one
message, before torch is imported.

    pretrain config check configs/*.yaml
    pretrain config show configs/bert_base.yaml --world-size 8
"""


_PAGES = (("A run", RunConfig), ("A corpus", CorpusConfig), ("A synthetic corpus", SyntheticConfig))


def reference_page() -> str:
    """The page, as Markdown."""
    lines = [_HEAD]
    for title, config_class in _PAGES:
        lines += [f"## {title}", "", inspect.cleandoc(config_class.__doc__ or ""), ""]
        lines += _tables(config_class, "")
    return "\n".join(lines).rstrip() + "\n"


def _tables(config_class: type, prefix: str, told: frozenset[str] = frozenset()) -> Iterator[str]:
    """Of the fields but those named in ``told``."""
    hints = typing.get_type_hints(config_class)
    texts = field_docstrings(config_class)
    fields = [field for field in dataclasses.fields(config_class) if field.name not in told]
    plain = [field for field in fields if _section_of(hints[field.name]) is None]
    if plain:
        yield from ("| key | default | |", "|---|---|---|")
        for field in plain:
            kind = describe_type(hints[field.name])
            yield f"| `{prefix}{field.name}` | {_default(field)} | {texts[field.name]} ({kind}) |"
        yield ""
    for field in fields:
        section = _section_of(hints[field.name])
        if section is not None:
            name = f"{prefix}{field.name}"
            many = typing.get_origin(hints[field.name]) is list
            yield from (f"### `{name}`{' (a list)' if many else ''}", "", inspect.cleandoc(section.__doc__ or ""), "")
            shared = _shared_fields(config_class, section)
            if shared:
                yield from (f"An entry has all keys of `{prefix.rstrip('.')}` as well, but `{field.name}`.", "")
            yield from _tables(section, f"{name}.N." if many else f"{name}.", shared)


def _shared_fields(config_class: type, section: type) -> frozenset[str]:
    """Fields that a section has from a class which the one around it is made from as well."""
    bases = [base for base in section.__mro__[1:] if dataclasses.is_dataclass(base) and issubclass(config_class, base)]
    return frozenset(field.name for base in bases for field in dataclasses.fields(base))


def _section_of(hint: typing.Any) -> type | None:
    if typing.get_origin(hint) is list:
        (hint,) = typing.get_args(hint)
    return hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None


def _default(field: dataclasses.Field[typing.Any]) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[operator]
    if value == "":
        return ""
    if isinstance(value, bool) or value is None:
        return f"`{str(value).lower() if value is not None else 'null'}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def field_docstrings(config_class: type) -> dict[str, str]:
    """The string under each field, on one line.

    Raises:
        ValueError: a field has none.
    """
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(definition, ast.ClassDef)
        name = ""
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
                texts[name] = " ".join(str(node.value.value).split()).replace("|", "\\|")
                name = ""
    missing = [field.name for field in dataclasses.fields(config_class) if field.name not in texts]
    if missing:
        raise ValueError(f"{config_class.__name__}: no docstring under {', '.join(missing)}")
    return texts


if __name__ == "__main__":
    print(reference_page(), end="")
