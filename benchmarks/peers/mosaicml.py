"""mosaicml streaming 0.13, in a process of its own: it needs NumPy below 2.2 and transformers 4.

    python -m benchmarks.peers.mosaicml ROWS DIRECTORY TOKENIZER VOCABULARY

answers one JSON object a line, as :class:`benchmarks.peers.other_process.OtherProcess` asks.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.machine import resident_megabytes, use_one_core
from benchmarks.peers.peer import (
    BATCH_ROWS,
    SEQUENCE_LENGTH,
    Collate,
    ResumablePeer,
    documented_collate,
    make_collator,
    tuned_collate,
)


def import_streaming() -> Any:
    """The library. It imports torchvision for its image datasets, whose published wheels need CUDA to load their
    operators; declaring these two lets the import pass on a machine without."""
    import torch

    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming

    return streaming


class MosaicStreaming(ResumablePeer):
    """MDS shards, shuffled by `py1e`, its default."""

    name = "mosaicml streaming"
    lacks: ClassVar[str] = "no packing; the order of an epoch is computed and held for all samples"

    def write(self, rows: np.ndarray) -> None:
        shutil.rmtree(self.directory / "mds", ignore_errors=True)
        columns = {"tokens": f"ndarray:uint16:{SEQUENCE_LENGTH}"}
        with import_streaming().MDSWriter(out=str(self.directory / "mds"), columns=columns) as writer:
            for row in rows:
                writer.write({"tokens": np.array(row)})

    def _loader(self, collate: Collate) -> Any:
        streaming = import_streaming()
        dataset = streaming.StreamingDataset(
            local=str(self.directory / "mds"), shuffle=True, shuffle_seed=0, batch_size=BATCH_ROWS
        )
        return streaming.StreamingDataLoader(
            dataset,
            batch_size=BATCH_ROWS,
            drop_last=True,
            collate_fn=lambda samples: collate([sample["tokens"] for sample in samples]),
        )

    def batches(self, collate: Collate) -> Iterator[Any]:
        return iter(self._loader(collate))

    def state_after(self, num_batches: int) -> Any:
        loader = self._loader(lambda rows: {"input_ids": rows})
        batches = iter(loader)
        for _ in range(num_batches):
            next(batches)
        return loader.state_dict()

    def resume(self, state: Any, collate: Collate) -> Iterator[Any]:
        loader = self._loader(collate)
        loader.load_state_dict(state)
        return iter(loader)


def main() -> None:
    """Answer requests until the input ends."""
    rows_path, directory, tokenizer, vocab_size = sys.argv[1:5]
    use_one_core()
    import torch

    torch.set_num_threads(1)
    # The library prints to standard output; the answers have it for themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    from importlib.metadata import version

    peer = MosaicStreaming(Path(rows_path), Path(directory))
    collator = make_collator(Path(tokenizer) if tokenizer else None, int(vocab_size))
    collates = {"documented": documented_collate(collator), "tuned": tuned_collate(collator)}
    versions = {name: version(name) for name in ("mosaicml-streaming", "transformers", "numpy", "torch")}
    print(json.dumps({"ready": versions}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(peer, collates, request)), file=answers, flush=True)


def _answer(peer: MosaicStreaming, collates: dict[str, Collate], request: dict[str, Any]) -> dict[str, Any]:
    if request["ask"] == "state":
        return {"state": peer.state_after(request["batches"])}
    if request["ask"] == "rows":
        from benchmarks.peers.measure import all_rows

        np.save(request["path"], all_rows(peer))
        return {}
    collate = collates[request["collate"]]
    if request["ask"] == "resume":
        before = time.perf_counter()
        next(peer.resume(request["state"], collate))
        return {"seconds": time.perf_counter() - before, "megabytes": resident_megabytes()}
    from benchmarks.peers.measure import seconds_a_batch

    return {"seconds": seconds_a_batch(peer.batches(collate), request["batches"])}


if __name__ == "__main__":
    main()
