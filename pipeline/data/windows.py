"""Windows: the packed rows of a few shards in their keyed order, planned when a lane enters them and kept while in use.

Everything kept here is a cache of a pure function; dropping it at any moment changes no row.

Letters: R rows of a window, K pieces, M shards of a window.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.keyed import key
from pipeline.data.order import CUTS, DOCUMENTS, EpochOrder, SourceOrder
from pipeline.data.packing import Packing
from pipeline.data.pieces import ShardLengths, as_integers, locate
from pipeline.data.rows import RowFormat
from pipeline.shards.files import CorpusFiles
from pipeline.shards.layout import shard_name
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Shard, read_index

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_SPARE_SHARDS: Final = 32


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
        value = self._kept[name] = self.make(name)
        if len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return value


@dataclass(frozen=True, eq=False)
class Window:
    """A window of an epoch."""

    first_piece: NDArray[np.int64]
    """First piece of the row at every place, (R,)."""

    end_piece: NDArray[np.int64]
    """Piece after its last, (R,)."""

    pieces: NDArray[np.int64]
    """Pieces with their places in the tars, as plain integers: see ``pieces.as_integers``, (K, 3)."""

    shard: NDArray[np.int64]
    """Shard of the row at every place, (R,)."""


class Windows:
    """Plans windows of one split of one corpus; opens indexes, and tars only when tokens are asked for."""

    def __init__(
        self,
        files: CorpusFiles,
        manifest: Manifest,
        split: str,
        packing: Packing,
        row_format: RowFormat,
        order: SourceOrder,
    ) -> None:
        self.files = files
        self.manifest = manifest
        self.split = split
        self.packing = packing
        self.row_format = row_format
        self.order = order
        # A few more than are open, since lanes leave their windows at different steps. An open shard costs a file
        # descriptor, of which 1,024 is a usual limit, and a planned window the memory of all its shards' pieces.
        spare = max(2, _SPARE_SHARDS // order.window_shards)
        self.window: Recent[tuple[int, int], Window] = Recent(self._plan_window, order.lanes + spare)
        self.shard: Recent[int, Shard] = Recent(self._open_shard, order.lanes * order.window_shards + _SPARE_SHARDS)
        self.epoch: Recent[int, EpochOrder] = Recent(order.epoch, 16)

    def _open_shard(self, number: int) -> Shard:
        try:
            return Shard.open(self.files, self.split, number, self.manifest)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise UserError(
                f"Shard {shard_name(self.split, number)} cannot be opened: this process has too many open files, and "
                "every open shard is one. Lower data.open_shards, or raise the limit (`ulimit -n`)."
            ) from None

    def _plan_window(self, name: tuple[int, int]) -> Window:
        epoch, window = name
        first = window * self.order.window_shards
        shards = self.epoch(epoch).shards[first : first + self.order.window_shards].tolist()
        pieces, borders, num_pieces = [], [], 0
        for shard in shards:
            planned, first_piece = self._plan_shard(epoch, shard)
            pieces.append(planned)
            borders.append(first_piece + num_pieces)
            num_pieces += len(planned)
        # Packed rows, shard after shard; the keyed order then says which of them stands at every place.
        first_piece = np.concatenate([border[:-1] for border in borders])
        end_piece = np.concatenate([border[1:] for border in borders])
        shard_of_row = np.repeat(shards, [len(border) - 1 for border in borders])
        row_at = self.order.window_rows(epoch, window, len(first_piece))
        return Window(
            first_piece=first_piece[row_at],
            end_piece=end_piece[row_at],
            pieces=np.concatenate(pieces),
            shard=shard_of_row[row_at],
        )

    def _plan_shard(self, epoch: int, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        index = read_index(self.files, self.split, shard, self.manifest)
        seed, source = self.order.seed, self.order.source
        plan = self.packing.plan(
            ShardLengths(index.lengths),
            self.row_format,
            key(seed, DOCUMENTS, source, epoch, shard),
            key(seed, CUTS, source, epoch, shard),
        )
        expected = int(self.order.rows_per_shard[shard])
        if plan.num_rows != expected:
            raise UserError(
                f"Shard {shard_name(self.split, shard)} packs into {plan.num_rows} rows, but the row table says "
                f"{expected}: the table under {self.files.describe('rows')} is of another corpus or damaged. "
                "Delete that folder; it is made again."
            )
        locate(plan.pieces, index.starts, index.blocks["first_document"])
        return as_integers(plan.pieces), plan.first_piece
