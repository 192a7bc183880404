"""litdata 0.2: chunks of tokens, memory-mapped, shuffled by chunk and within.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import numpy as np

from benchmarks.peers.peer import BATCH_ROWS, SEQUENCE_LENGTH, Collate, ResumablePeer

_ROWS_A_CHUNK: Final = 4096

os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")


class LitdataTokens(ResumablePeer):
    """`StreamingDataset` over tokens, in blocks of 512: each is one of our rows."""

    name = "litdata"
    lacks: ClassVar[str] = (
        "no packing; shuffles within a chunk; a resume with other workers or ranks restripes the epoch"
    )

    def write(self, rows: np.ndarray) -> None:
        import torch
        from litdata.streaming.cache import Cache
        from litdata.streaming.item_loader import TokensLoader

        chunk_tokens = _ROWS_A_CHUNK * SEQUENCE_LENGTH
        cache = Cache(str(self.directory), chunk_size=chunk_tokens, item_loader=TokensLoader(SEQUENCE_LENGTH))
        for number, first in enumerate(range(0, len(rows), _ROWS_A_CHUNK)):
            tokens = np.array(rows[first : first + _ROWS_A_CHUNK]).reshape(-1)
            cache[number] = torch.from_numpy(tokens)
        cache.done()
        cache.merge()

    def _loader(self, collate: Collate) -> Any:
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming.item_loader import TokensLoader

        dataset = StreamingDataset(
            str(self.directory), item_loader=TokensLoader(SEQUENCE_LENGTH), shuffle=True, drop_last=False, seed=0
        )
        return StreamingDataLoader(dataset, batch_size=BATCH_ROWS, drop_last=False, collate_fn=collate)

    def batches(self, collate: Collate) -> Iterator[Any]:
        return iter(self._loader(collate))

    def state_after(self, num_batches: int) -> Any:
        loader = self._loader(lambda rows: {})
        batches = iter(loader)
        for _ in range(num_batches):
            next(batches)
        return loader.state_dict()

    def resume(self, state: Any, collate: Collate) -> Iterator[Any]:
        loader = self._loader(collate)
        loader.load_state_dict(state)
        return iter(loader)
