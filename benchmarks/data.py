"""The data engine against its peers, on one core, in one run: `python benchmarks/data.py [--quick] [--json PATH]`.

Run it from the repository's root in the environment that `make benchmarks-setup` makes. Repetitions of all contenders
are interleaved and medians reported; what both sides deliver is compared before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import WORK, CoreShare, use_one_core, versions
from benchmarks.record import Table, write_record

PACKAGES = ("numpy", "torch", "transformers", "webdataset", "datasets", "litdata", "pretrain")


def main() -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--quick", action="store_true", help="2 million tokens, few repetitions: a smoke test")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    use_one_core()  # before NumPy and torch start their threads
    import torch

    torch.set_num_threads(1)
    from benchmarks import batches, corpus, masking, packing, resume, waiting
    from pipeline.base.allocator import keep_freed_memory

    keep_freed_memory()  # as our loader does; it serves the peers in this process too

    prose = corpus.prepare("prose", options.quick)
    dictionaries = corpus.prepare("dictionaries", options.quick)
    print(f"data: {prose.description}; {dictionaries.description}", flush=True)
    rows, short_rows = corpus.pack_rows(prose), corpus.pack_rows(dictionaries)
    directory = WORK / ("peers-quick" if options.quick else "peers")
    peers = batches.open_peers(rows, directory)
    for name, reason in peers.missing.items():
        print(f"skipped {name}: {reason}", flush=True)
    repetitions, few, many = (3, 10, 40) if options.quick else (5, 30, 200)
    try:
        batches.check_ours(prose, rows)
        batches.check_ours(dictionaries, short_rows)
        batches.check_peers(peers, rows, directory)
        print("both sides deliver the same rows", flush=True)
        share = CoreShare()
        masked = masking.measure_masking(prose, repetitions, few)
        core_share = share()
        results = [
            *batches.measure_masked(prose, rows, peers, repetitions, few),
            batches.measure_short_documents(dictionaries, short_rows, repetitions),
            masked,
            batches.measure_raw(prose, peers, repetitions, many),
            *packing.measure_packing(repetitions),
            *resume.measure_resume(prose, rows, peers, directory, 3),
            *waiting.measure_wait_share(1 if options.quick else 3, cores),
            *waiting.measure_workers(prose, min(3, repetitions), many, cores),
        ]
    finally:
        peers.close()
    found = versions(*PACKAGES)
    if peers.other is not None:
        found |= {f"{name} (beside mosaicml-streaming)": number for name, number in peers.other.versions.items()}
        found["mosaicml-streaming"] = found.pop("mosaicml-streaming (beside mosaicml-streaming)")
    facts: dict[str, Any] = {
        "data": [prose.description, dictionaries.description],
        "batch": "64 rows of 512 tokens, int64, masked 15 % (80/10/10)",
        "skipped": peers.missing,
        "share of its core that the benchmark had (while masking)": round(core_share, 2),
    }
    lacks = Table(["peer", "what it does not do"], list(peers.lacks.items()))
    write_record(options.json, "data", found, results, {"peers": lacks}, facts)


if __name__ == "__main__":
    main()
