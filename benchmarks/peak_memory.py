"""Most memory that a side needs for its steps, in a process of its own: `python benchmarks/peak_memory.py SIDE FILE`.

What is reported is the most resident memory after some steps, less what the process held before the model was made:
weights, gradients, moments, activations, batches.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import drop_free_memory, resident_megabytes
from benchmarks.workload import Workload, full_rows, workload_from_json, workload_to_json
from pipeline.train.faults import ended_by_sigterm

NUM_STEPS: Final = 3
_DOCUMENT_STEPS: Final = 20


def measure_side(side: str, workload: Workload) -> float:
    """MB of a side, measured in a new process."""
    arguments = workload_to_json(workload)
    with ended_by_sigterm():  # and the process with it
        done = subprocess.run([sys.executable, __file__, side, arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stdout[-800:]}\n{done.stderr[-1600:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["megabytes"])


def main() -> None:
    """Run one side and print its memory as JSON."""
    import torch

    side, workload = sys.argv[1], workload_from_json(sys.argv[2])
    torch.set_num_threads(workload.hardware.threads)
    print(json.dumps({"side": side, "megabytes": SIDES[side](workload)}))


def ours(workload: Workload) -> float:
    """The loop of `pretrain train`, its checkpoint not counted."""
    from benchmarks.our_training import trained_metrics

    before = _megabytes_now()
    return 1e3 * float(trained_metrics(workload.config(), NUM_STEPS)[-1]["memory_gb"]) - before


def trainer_padded(workload: Workload) -> float:
    """The Trainer on documents padded to the longest of a batch."""
    from benchmarks.peers import hf_trainer

    examples = hf_trainer.masked_examples(workload.documents(_DOCUMENT_STEPS))
    return _of_trainer(workload, examples, hf_trainer.masking_collator(workload.shape.vocab_size))


def trainer_full_rows(workload: Workload) -> float:
    """The Trainer on full rows."""
    from benchmarks.peers import hf_trainer

    rows = full_rows(workload.documents(_DOCUMENT_STEPS), workload.shape.sequence_length)
    if workload.shape.is_causal:
        return _of_trainer(workload, hf_trainer.causal_examples(rows), hf_trainer.stacking_collator())
    examples = hf_trainer.masked_examples(list(rows))
    return _of_trainer(workload, examples, hf_trainer.masking_collator(workload.shape.vocab_size))


def _of_trainer(workload: Workload, examples: list[Any], collate: Any) -> float:
    from benchmarks.our_training import stock_model
    from benchmarks.peers import hf_trainer

    importlib.import_module("transformers.trainer")  # before memory is read
    settings = hf_trainer.TrainerSettings(workload.num_rows, workload.hardware)
    before = _megabytes_now()
    hf_trainer.run_trainer(stock_model(workload, "sdpa"), examples, collate, settings, NUM_STEPS)
    return _most_megabytes() - before


def plain_loop(workload: Workload) -> float:
    """The plain GPT loop, not compiled."""
    import numpy as np

    from benchmarks.peers.plain_gpt import PlainGpt, PlainLoop, padded_vocabulary

    tokens = np.concatenate(workload.documents(_DOCUMENT_STEPS))
    before = _megabytes_now()
    model = PlainGpt(workload.shape, padded_vocabulary(workload.shape.vocab_size))
    PlainLoop(model, tokens, workload.num_rows, workload.hardware, compiled=False).seconds_a_step(NUM_STEPS - 1)
    return _most_megabytes() - before


def _megabytes_now() -> float:
    drop_free_memory()
    return resident_megabytes()


def _most_megabytes() -> float:
    from pipeline.monitor.meters import memory_gb

    return 1e3 * memory_gb("cpu")


SIDES: Final[Mapping[str, Callable[[Workload], float]]] = {
    "ours": ours,
    "HF Trainer, padded documents": trainer_padded,
    "HF Trainer, full rows": trainer_full_rows,
    "plain loop": plain_loop,
}


if __name__ == "__main__":
    main()
