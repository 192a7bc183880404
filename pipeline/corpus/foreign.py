"""What stands at the path that an import was given: the form, its splits, and those that are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.base.errors import UserError
from pipeline.corpus.megatron import MegatronSource, megatron_prefix, open_megatron, with_ending
from pipeline.corpus.token_source import TokenSource
from pipeline.corpus.tokenized_datasets import check_encodable, is_dataset_folder, open_dataset_folder

FORMS: Final = ("megatron", "datasets")
_OUR_SPLITS: Final = ("train", "validation")


@dataclass(frozen=True, eq=False)
class ForeignSource:
    """The documents to import."""

    location: Path
    """As the user gave it."""

    form: str
    """``"megatron"`` or ``"datasets"``."""

    name: str
    """First part of the documents' names."""

    sources: Mapping[str, TokenSource]
    """By split of the source: one, or ``train`` and ``validation``."""

    @property
    def keeps_splits(self) -> bool:
        """Whether the splits of the source become ours, instead of a share chosen by hash."""
        return len(self.sources) > 1


def open_foreign(location: Path, form: str | None, splits: Sequence[str], name: str | None) -> ForeignSource:
    """Find and open a source.

    Args:
        form: one of :data:`FORMS`; None: what is found.
        splits: those wanted; none: the only one, or ``train`` and ``validation`` as far as they are there.

    Raises:
        UserError: the path is not UTF-8, nothing of that form is there, no such split, more splits than one chosen that
            are not ours, or what the form's reader refuses.
    """
    check_encodable(location)
    form = form or _form_of(location)
    name = name or megatron_prefix(location.absolute()).name
    found = _megatron_splits(location) if form == "megatron" else _dataset_splits(location)
    chosen = _choose(location, list(found), splits)
    prefixes = {split: name if len(chosen) == 1 else f"{name}/{split}" for split in chosen}
    return ForeignSource(location, form, name, {split: found[split](prefixes[split]) for split in chosen})


def _form_of(location: Path) -> str:
    if location.is_dir():
        if any(location.glob("*.idx")):
            return "megatron"
        if is_dataset_folder(location):
            return "datasets"
    elif location.suffix in (".bin", ".idx") or with_ending(location, ".idx").is_file():
        return "megatron"
    raise UserError(
        f"{location} is nothing that can be imported. Give a Megatron-LM pair (its path without .bin and .idx, or a "
        "folder of pairs), a folder written by `datasets.save_to_disk`, or a folder of Parquet files with the column "
        "`input_ids`; text is for `pretrain corpus build`."
    )


def _megatron_splits(location: Path) -> dict[str, Callable[[str], TokenSource]]:
    prefixes = [megatron_prefix(location)]
    if location.is_dir():
        prefixes = [megatron_prefix(path) for path in sorted(location.glob("*.idx"))]
        if not prefixes:
            raise UserError(f"{location} holds no .idx file of Megatron-LM. Choose the right folder or --format.")
    return {prefix.name: partial(_megatron_split, prefix) for prefix in prefixes}


def _megatron_split(prefix: Path, name: str) -> TokenSource:
    return MegatronSource(open_megatron(prefix), name)


def _dataset_splits(location: Path) -> dict[str, Callable[[str], TokenSource]]:
    if not location.is_dir() or not is_dataset_folder(location):
        raise UserError(
            f"{location} is no folder of `datasets.save_to_disk` and holds no .parquet files. Choose the right folder "
            "or --format."
        )
    return open_dataset_folder(location)


def _choose(location: Path, found: Sequence[str], wanted: Sequence[str]) -> list[str]:
    there = ", ".join(found)
    if missing := [split for split in wanted if split not in found]:
        raise UserError(f"{location} has no split {missing[0]!r}; it has {there}. Choose --split among them.")
    chosen = list(dict.fromkeys(wanted)) or list(found)
    if len(chosen) > 1 and not wanted and "train" in chosen:
        chosen = [split for split in _OUR_SPLITS if split in found]
    if len(chosen) > 1 and set(chosen) != set(_OUR_SPLITS):
        raise UserError(
            f"{location} has the splits {there}: choose one with --split (a share of it becomes the validation split), "
            "or `--split train validation`."
        )
    return chosen
