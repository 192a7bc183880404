"""Documents that the stream leaves out, each from a step on.

Nothing else moves: the rows, their numbers and their order stay as they are, and the segments of an excluded document
are taken out of the rows that it stands in. So the steps before are not changed, and any step after is still a pure
function of the settings.

Letters: D documents of a shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.run import ExclusionConfig
from pipeline.data.source import OpenSource, Recent

NEVER = np.iinfo(np.int64).max


def read_exclusions(entries: Sequence[ExclusionConfig]) -> dict[str, int]:
    """First step (counted from 0) without each document, by its id; of several entries the earliest counts.

    Raises:
        UserError: a file that cannot be read as text, or without an id.
    """
    first_step: dict[str, int] = {}
    for number, entry in enumerate(entries):
        for name in [*entry.documents, *_lines(entry.file, number)]:
            first_step[name] = min(entry.from_step - 1, first_step.get(name, NEVER))
    return first_step


def _lines(file: str | None, number: int) -> list[str]:
    if file is None:
        return []
    try:
        # An editor may have put a byte order mark before the first id.
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.exclude.{number}.file: {file} cannot be read ({error}). Give a UTF-8 text file with one document "
            "id a line."
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"data.exclude.{number}.file: {file} names no document. Write one id a line, or leave it out.")
    return names


class Exclusions:
    """Excluded documents by shard, found when a shard is first read.

    Args:
        first_step: first step without a document, by its id.
    """

    def __init__(self, first_step: Mapping[str, int]) -> None:
        self.first_step = dict(first_step)
        self._of_shard: Recent[tuple[int, int], NDArray[np.int64] | None] = Recent(self._find, 1)
        self._sources: dict[int, OpenSource] = {}

    def __bool__(self) -> bool:
        return bool(self.first_step)

    def keep(self, num_shards: int) -> None:
        """Remember what was found in so many shards."""
        self._of_shard.capacity = num_shards

    def of_shard(self, source: OpenSource, shard: int) -> NDArray[np.int64] | None:
        """First step without every document of a shard, int64 (D,); None if none of them is ever left out."""
        self._sources[source.number] = source
        return self._of_shard((source.number, shard))

    def _find(self, name: tuple[int, int]) -> NDArray[np.int64] | None:
        number, shard = name
        source = self._sources[number]
        documents = np.arange(int(source.table.documents[shard]))
        steps = [self.first_step.get(name, NEVER) for name in source.names(shard, documents)]
        return None if min(steps) == NEVER else np.array(steps, np.int64)

    def before(self, step: int) -> dict[str, int]:
        """The part that has an effect on steps below ``step``."""
        return {name: first for name, first in self.first_step.items() if first < step}

    def fingerprint(self, step: int) -> str:
        """sha256 of :meth:`before`; empty where nothing has been left out yet."""
        part = sorted(self.before(step).items())
        return hashlib.sha256(repr(part).encode()).hexdigest() if part else ""
