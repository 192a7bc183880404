"""A restart in the middle of an epoch: time to the first masked batch and memory, every time in a new process.

    python -m benchmarks.resume NAME FILE

is that process: FILE is a pickle with where the data and the state are; it prints one JSON object.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.batches import VOCABULARY, Peers, peer_classes, tokenizer_file
from benchmarks.corpus import MeasuredCorpus, PackedRows, num_batches
from benchmarks.machine import drop_free_memory, interleaved, medians, resident_megabytes, use_one_core
from benchmarks.peers.other_process import OtherProcess
from benchmarks.peers.peer import ResumablePeer, documented_collate, make_collator
from benchmarks.record import Result

_OURS: Final = "ours"


def measure_resume(
    corpus: MeasuredCorpus, rows: PackedRows, peers: Peers, directory: Path, repetitions: int
) -> list[Result]:
    """Seconds from the restart to the first batch of a step two thirds into the epoch, and the process's memory.

    Imports are not counted. A peer that cannot resume is not in the table.
    """
    step = 2 * num_batches(rows) // 3
    memory: dict[str, list[float]] = {}
    contenders: dict[str, Callable[[], float]] = {}

    def add(name: str, answer: Callable[[], dict[str, float]]) -> None:
        def seconds() -> float:
            found = answer()
            memory.setdefault(name, []).append(found["megabytes"])
            return found["seconds"]

        contenders[name] = seconds

    add(_OURS, lambda: _in_new_process(_OURS, {"corpus": corpus.directory, "step": step}, directory))
    classes, _ = peer_classes()
    for class_name, peer_class in classes.items():
        peer = peers.here.get(peer_class.name)
        if isinstance(peer, ResumablePeer):
            request = {"rows": rows.path, "directory": peer.directory, "state": peer.state_after(step)}
            add(peer.name, lambda name=class_name, request=request: _in_new_process(name, request, directory))
    if (other := peers.other) is not None:
        state = other.ask(ask="state", batches=step)["state"]

        def mosaicml() -> dict[str, float]:
            fresh = OtherProcess(rows.path, directory / "mosaicml", tokenizer_file(), VOCABULARY)
            try:
                return fresh.ask(ask="resume", collate="documented", state=state)
            finally:
                fresh.close()

        add(other.name, mosaicml)
    seconds = medians(interleaved(contenders, repetitions, "resume"))
    megabytes = medians(memory)
    return [
        Result("resume: first batch", "seconds", "lower", seconds.pop(_OURS), seconds),
        Result("resume: memory of the process", "MB", "lower", megabytes.pop(_OURS), megabytes),
    ]


def _in_new_process(name: str, request: dict[str, Any], directory: Path) -> dict[str, float]:
    path = directory / "resume.pickle"
    path.write_bytes(pickle.dumps(request))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.resume", name, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"resume of {name} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _first_batch(name: str, request: dict[str, Any]) -> Callable[[], Any]:
    """What makes the first batch; its imports are done."""
    if name == _OURS:
        import pipeline.objectives.registry  # noqa: F401 - imported here, so that the time has no import in it
        from benchmarks.engine import masked_batches, objective_of, open_rows

        def ours() -> Any:
            stream = open_rows(request["corpus"])
            return next(masked_batches(stream, objective_of(stream), 1, request["step"]))

        return ours
    classes, _ = peer_classes()
    peer = classes[name](request["rows"], request["directory"])
    assert isinstance(peer, ResumablePeer)
    collate = documented_collate(make_collator(tokenizer_file(), VOCABULARY))
    return lambda: next(peer.resume(request["state"], collate))


def main() -> None:
    """Resume once and print the time and the memory."""
    use_one_core()
    name, path = sys.argv[1:]
    request = pickle.loads(Path(path).read_bytes())
    make = _first_batch(name, request)
    import torch

    torch.set_num_threads(1)
    before = time.perf_counter()
    batch = make()
    seconds = time.perf_counter() - before
    drop_free_memory()
    print(json.dumps({"seconds": seconds, "megabytes": resident_megabytes()}))
    del batch


if __name__ == "__main__":
    main()
