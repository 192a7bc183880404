"""The stream: rows of any step, as a pure function of (corpus, settings, seed, step).

Letters: R rows, S sequence length, K segments, G rows of a step (global batch), W world size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.data.gather import gather_rows, split_rows
from pipeline.data.order import SourceOrder, check_window, num_lanes, places, rank_slice, slot_order
from pipeline.data.packing import find_packing, max_segments_per_row, rows_per_shard
from pipeline.data.rows import RowFormat, Rows
from pipeline.data.windows import Windows
from pipeline.shards.files import CorpusFiles
from pipeline.shards.manifest import Manifest


class RowStream:
    """Rows of one split of one corpus, step by step, for ever.

    It holds caches but no state: ``rows(step)`` is the same in a fresh object, in any order of steps, for every world
    size (the slices of all ranks, joined, are the rows of the step), in any process.

    Args:
        files: of the corpus.
        manifest: of the corpus.
        split: ``"train"`` or ``"validation"``.
        packing: name of a packing.
        open_shards: shards mixed at once: lanes x shards a window.
        row_format: how pieces stand in a row.
        seed: of the run.
        global_batch_size: G, rows a step over all ranks.
        source: number of this source in a mixture.

    Raises:
        UserError: no such split, no rows in it, a setting out of range, a damaged index.
    """

    def __init__(
        self,
        files: CorpusFiles,
        manifest: Manifest,
        split: str,
        *,
        packing: str,
        open_shards: int,
        row_format: RowFormat,
        seed: int,
        global_batch_size: int,
        source: int = 0,
    ) -> None:
        if global_batch_size < 1 or open_shards < 1:
            raise UserError(
                f"train.global_batch_size is {global_batch_size} and data.open_shards is {open_shards}; "
                "both must be at least 1."
            )
        if split not in manifest.splits:
            raise UserError(
                f"The corpus {files.location} has no split {split!r}; it has "
                f"{', '.join(sorted(manifest.splits)) or 'none'}."
            )
        self.files = files
        self.manifest = manifest
        self.split = split
        self.packing = find_packing(packing)
        self.open_shards = open_shards
        self.row_format = row_format
        self.seed = seed
        self.global_batch_size = global_batch_size
        table = manifest.splits[split]
        counts = rows_per_shard(files, manifest, split, self.packing, row_format)
        self.num_rows = int(counts.sum())
        """Rows an epoch, N."""
        if not self.num_rows:
            raise UserError(
                f"The split {split!r} of {files.location} has no documents. Build the corpus with more text."
            )
        lanes = num_lanes(global_batch_size, open_shards)
        window_shards = max(1, open_shards // lanes)
        check_window(counts, window_shards, open_shards)
        self.order = SourceOrder(seed, source, counts, lanes, window_shards)
        self._first_documents = np.cumsum(table.documents) - table.documents  # (shards,)
        self._open()

    def _open(self) -> None:
        self._windows = Windows(self.files, self.manifest, self.split, self.packing, self.row_format, self.order)

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes start with empty caches: maps do not travel."""
        return {name: value for name, value in self.__dict__.items() if name != "_windows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def steps_per_epoch(self) -> float:
        """Steps that read every token once."""
        return self.num_rows / self.global_batch_size

    @property
    def max_segments_per_row(self) -> int:
        """No row has more segments; see :func:`pipeline.data.packing.max_segments_per_row`."""
        return max_segments_per_row(self.row_format, self.packing.name)

    @property
    def fill(self) -> float:
        """Share of an epoch's slots that hold text of the corpus (special tokens and padding do not)."""
        tokens = int(self.manifest.splits[self.split].tokens.sum())
        return tokens / (self.num_rows * self.row_format.sequence_length)

    def first_row(self, step: int) -> int:
        """Run-wide number of the step's first row."""
        return step * self.global_batch_size

    def rows(self, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        """A rank's rows of a step, in slot order.

        Raises:
            UserError: more ranks than rows, or a damaged shard.
        """
        return self.rows_of_steps([step], rank, world_size)[0]

    def rows_of_steps(self, steps: Sequence[int], rank: int = 0, world_size: int = 1) -> list[Rows]:
        """As :meth:`rows` for several steps, planned and gathered together: faster than one by one."""
        if not steps:
            return []
        begin, end = rank_slice(self.global_batch_size, rank, world_size)
        numbers = [self.first_row(step) + self._slots(step)[begin:end] for step in steps]
        return split_rows(self._gather(np.concatenate(numbers)), [end - begin] * len(steps))

    def _slots(self, step: int) -> NDArray[np.int64]:
        """Rows of a step, counted from its first, in slot order, (G,)."""
        if step < 0:
            raise ValueError(f"step {step}")
        ordinals = np.arange(self.global_batch_size) + self.first_row(step)
        return slot_order(places(ordinals, self.num_rows, self.order.lanes).lane, self.order.lanes)

    def _gather(self, numbers: NDArray[np.int64]) -> Rows:
        """Rows by their run-wide numbers, int64 (R,), in that order."""
        found = places(numbers, self.num_rows, self.order.lanes)
        return self.rows_at(found.epoch, found.position, numbers)

    def rows_at(self, epoch: NDArray[np.int64], position: NDArray[np.int64], row_numbers: NDArray[np.int64]) -> Rows:
        """Rows by epoch and position u in the epoch's sequence; all three int64 (R,)."""
        window, place = np.empty_like(position), np.empty_like(position)
        for one in np.unique(epoch).tolist():
            here = epoch == one
            first_row = self._windows.epoch(one).first_row
            window[here] = np.searchsorted(first_row, position[here], side="right") - 1
            place[here] = position[here] - first_row[window[here]]
        pieces: list[Any] = [None] * len(position)
        shards = np.empty(len(position), np.int64)
        # Window by window, so that a batch over more windows than are kept plans each of them once.
        asked = list(zip(epoch.tolist(), window.tolist(), place.tolist(), strict=True))
        last = None
        for row in np.lexsort((window, epoch)).tolist():
            one, number, at = asked[row]
            if (one, number) != last:
                last = (one, number)
                planned = self._windows.window(last)
            pieces[row] = planned.pieces[planned.first_piece[at] : planned.end_piece[at]]
            shards[row] = planned.shard[at]
        tokens = {shard: self._windows.shard(shard).tokens for shard in set(shards.tolist())}
        return gather_rows(
            pieces,
            [tokens[shard] for shard in shards.tolist()],
            row_numbers=row_numbers,
            epoch=epoch,
            shard=shards,
            source=np.full(len(shards), self.order.source),
            first_document=self._first_documents[shards],
            row_format=self.row_format,
        )

    def document_ids(self, rows: Rows) -> list[str]:
        """Name of every segment's document, K of them, aligned with the segments of ``rows``."""
        shard = rows.shard[rows.segment_row]  # (K,)
        names = [""] * len(shard)
        for number in np.unique(shard).tolist():
            segments = np.flatnonzero(shard == number)
            documents = rows.document[segments] - self._first_documents[number]
            found = self._windows.shard(number).document_ids(documents.tolist())
            for segment, name in zip(segments.tolist(), found, strict=True):
                names[segment] = name
        return names

    def settings_fingerprint(self) -> str:
        """sha256 over everything but the corpus that decides which rows a step has.

        World size, micro-batch, workers and caches are not in it.
        """
        row_format = self.row_format
        settings = {
            "seed": self.seed,
            "source": self.order.source,
            "split": self.split,
            "sequence_length": row_format.sequence_length,
            "begin_ids": list(row_format.begin_ids),
            "end_ids": list(row_format.end_ids),
            "pad_id": row_format.pad_id,
            "end_only_at_document_end": row_format.end_only_at_document_end,
            "packing": self.packing.name,
            "packing_version": self.packing.version,
            "open_shards": self.open_shards,
            "global_batch_size": self.global_batch_size,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
