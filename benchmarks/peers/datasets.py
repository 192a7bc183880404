"""Hugging Face datasets 5: Arrow tables in memory maps, map-style and iterable.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import numpy as np

from benchmarks.peers.peer import BATCH_ROWS, SEQUENCE_LENGTH, SHUFFLE_BUFFER, Collate, Peer, ResumablePeer

_NUM_SHARDS: Final = 16
_COLUMN: Final = "input_ids"


class _Tables(Peer):
    """Rows as one Arrow column of fixed-size lists, memory-mapped."""

    def write(self, rows: np.ndarray) -> None:
        import pyarrow
        from datasets import Dataset, Features, Sequence, Value

        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.asarray(rows).reshape(-1)), SEQUENCE_LENGTH)
        features = Features({_COLUMN: Sequence(Value("uint16"), length=SEQUENCE_LENGTH)})
        table = pyarrow.Table.from_arrays([column], names=[_COLUMN])
        Dataset(table).cast(features).save_to_disk(str(self.directory / "table"))

    def table(self) -> Any:
        from datasets import disable_progress_bars, load_from_disk

        disable_progress_bars()
        return load_from_disk(str(self.directory / "table"))

    @staticmethod
    def collate_column(collate: Collate) -> Any:
        return lambda examples: collate([example[_COLUMN] for example in examples])


class DatasetsMap(_Tables):
    """Map-style: every row by number, a fresh permutation an epoch."""

    name = "datasets, map-style"
    lacks: ClassVar[str] = "no packing; the order is a permutation held in memory, and resume skips to its place"

    def batches(self, collate: Collate) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        table = self.table().with_format("numpy")
        return iter(
            DataLoader(table, BATCH_ROWS, shuffle=True, drop_last=True, collate_fn=self.collate_column(collate))
        )


class DatasetsIterable(_Tables, ResumablePeer):
    """Iterable: shards in a shuffled order, rows through a shuffle buffer."""

    name = "datasets, iterable"
    lacks: ClassVar[str] = "no packing; a resume loses what was in the shuffle buffer and reads the shard again"

    def _stream(self) -> Any:
        stream = self.table().to_iterable_dataset(num_shards=_NUM_SHARDS)
        return stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER).with_format("numpy")

    def batches(self, collate: Collate) -> Iterator[Any]:
        return self._loaded(self._stream(), collate)

    def _loaded(self, stream: Any, collate: Collate) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        return iter(DataLoader(stream, BATCH_ROWS, drop_last=True, collate_fn=self.collate_column(collate)))

    def state_after(self, num_batches: int) -> Any:
        stream = self._stream()
        rows = iter(stream)
        for _ in range(num_batches * BATCH_ROWS):
            next(rows)
        return stream.state_dict()

    def resume(self, state: Any, collate: Collate) -> Iterator[Any]:
        stream = self._stream()
        stream.load_state_dict(state)
        return self._loaded(stream, collate)
