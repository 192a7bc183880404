"""One corpus of a mixture: its files, and the shards of a split that are open at the moment.

Letters: D documents of a shard.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.data.pieces import ShardLengths
from pipeline.shards.files import CorpusFiles
from pipeline.shards.index import ShardIndex, read_index
from pipeline.shards.layout import shard_name
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Shard

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values used last, made again when asked for after they were dropped."""

    def __init__(self, make: Callable[[K], V], capacity: int) -> None:
        self.make = make
        self.capacity = capacity
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __call__(self, name: K) -> V:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        value = self.make(name)
        self.keep(name, value)
        return value

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: K) -> bool:
        return name in self._kept

    def keep(self, name: K, value: V) -> None:
        """Put in a value that was made elsewhere."""
        self._kept[name] = value
        if len(self._kept) > self.capacity:
            self._kept.popitem(last=False)


@dataclass(frozen=True, eq=False)
class Source:
    """A corpus and its part in the mixture."""

    files: CorpusFiles
    manifest: Manifest
    weight: float | None = None
    """Against the others' weights; None: its tokens in the split."""

    epochs: int | None = None
    """Drops out after so many epochs; None: repeats for ever."""


class OpenSource:
    """The shards of one split of a source.

    Args:
        number: of the source in the mixture; part of every key.
        capacity: shards kept open, until another ``shard.capacity`` is set. An open shard costs a file descriptor, of
            which 1,024 is a usual limit.

    Raises:
        UserError: the corpus has no such split, or nothing in it.
    """

    def __init__(self, source: Source, number: int, split: str, capacity: int) -> None:
        self.files = source.files
        self.manifest = source.manifest
        self.number = number
        self.split = split
        splits = source.manifest.splits
        if split not in splits:
            raise UserError(
                f"The corpus {self.files.location} has no split {split!r}; it has "
                f"{', '.join(sorted(splits)) or 'none'}."
            )
        self.table = splits[split]
        if not int(self.table.documents.sum()):
            raise UserError(
                f"The split {split!r} of {self.files.location} has no documents. Build the corpus with more text."
            )
        self.epochs = source.epochs
        self.weight = float(self.table.tokens.sum()) if source.weight is None else source.weight
        self.first_document = np.cumsum(self.table.documents) - self.table.documents
        """Documents of the split before every shard, (shards,)."""
        self._capacity = capacity
        self.shard: Recent[int, Shard] = Recent(self._open, capacity)

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes start without open shards: maps do not travel."""
        return {name: value for name, value in self.__dict__.items() if name != "shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.shard = Recent(self._open, self._capacity)

    @property
    def num_tokens(self) -> int:
        """Tokens of the split."""
        return int(self.table.tokens.sum())

    def _open(self, number: int) -> Shard:
        try:
            return Shard.open(self.files, self.split, number, self.manifest)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise UserError(
                f"Shard {shard_name(self.split, number)} cannot be opened: this process has too many open files, and "
                "every open shard is one. Lower data.open_shards, or raise the limit (`ulimit -n`)."
            ) from None

    def index(self, number: int) -> ShardIndex:
        """The index of a shard, read anew."""
        return read_index(self.files, self.split, number, self.manifest)

    def lengths(self, number: int, index: ShardIndex, sentences: bool) -> ShardLengths:
        """What a packing may look at; sentences are read from the tar."""
        if not sentences:
            return ShardLengths(index.lengths)
        lengths, first_sentence = self.shard(number).sentences()
        return ShardLengths(index.lengths, lengths, first_sentence)

    def names(self, number: int, documents: NDArray[np.int64]) -> list[str]:
        """Ids of documents of a shard."""
        return self.shard(number).document_ids(documents.tolist())
