"""The training step on this CPU against its peers, in one run: `python benchmarks/step.py [--quick] [--json PATH]`.

Run it from the repository's root in the environment that `make benchmarks-setup` makes. Both sides have the same torch,
threads and initial weights and no dropout; before anything is timed their losses are compared. Repetitions of all
contenders are interleaved and medians reported. Ours is timed as `pretrain train` runs it, logs and all. Calls with
`--only` and the same `--json` join their results.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import WORK, versions
from benchmarks.record import Result, Table, join_record, print_record
from benchmarks.workload import Hardware, Shape, Workload, synthetic_corpus
from pipeline.train.faults import ended_by_sigterm

PACKAGES: Final = ("numpy", "torch", "transformers", "accelerate", "lightning", "pretrain")
BERT: Final = Shape("bert", hidden_size=256, num_layers=12, num_heads=4, vocab_size=30_522, sequence_length=512)
GPT: Final = replace(BERT, family="gpt2", vocab_size=50_257)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    bert: Workload
    gpt: Workload
    rounds: int
    """Repetitions of every contender."""

    steps: int
    """Steps timed in a repetition, after one that is not."""

    with_trainer: bool


@dataclass
class Findings:
    """What an entry adds to the record."""

    results: list[Result] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; write the JSON if asked to."""
    options = _options(arguments)
    threads = options.threads or len(os.sched_getaffinity(0))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    from benchmarks import step_entries
    from benchmarks.peers.hf_trainer import missing_library

    torch.set_num_threads(threads)
    missing = missing_library()
    if missing:
        print(f"skipped the HF Trainer: {missing}", flush=True)
    scale, data = _scale(options.quick, threads, missing is None)
    entries: dict[str, Callable[[Scale], Findings]] = {
        "bert": step_entries.measure_bert,
        "gpt": step_entries.measure_gpt,
        "peak_memory": step_entries.measure_peak_memory,
        "ladder": step_entries.measure_ladders,
    }
    facts: dict[str, Any] = {
        "data": data,
        "batch": f"{scale.bert.num_rows} rows (or documents) of {scale.bert.shape.sequence_length} tokens",
        "threads": threads,
        "skipped": {"HF Trainer": missing} if missing else {},
    }
    found = Findings()
    for name in options.only or entries:
        print(f"{name} ...", flush=True)
        one = entries[name](scale)
        found.results += one.results
        found.tables |= one.tables
        # After each entry: a call that is cut short, or one for each entry, leaves what it measured.
        record = join_record(options.json, "step", versions(*PACKAGES), found.results, found.tables, facts)
    print_record(record)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--quick", action="store_true", help="tiny models, made-up text: a smoke test")
    parser.add_argument("--threads", type=int, help="of both sides; default: the cores of this process")
    parser.add_argument("--only", nargs="+", choices=("bert", "gpt", "peak_memory", "ladder"), help="these entries")
    return parser.parse_args(arguments)


def _scale(quick: bool, threads: int, with_trainer: bool) -> tuple[Scale, str]:
    """What is measured, and its text in words."""
    hardware = Hardware(threads=threads)
    if quick:
        tiny: dict[str, Any] = {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 512,
            "sequence_length": 64,
        }
        corpus = synthetic_corpus(WORK / "step-quick", 512, 60_000, mean_tokens=40)
        bert = Workload(replace(BERT, **tiny), corpus, 4, hardware)
        scale = Scale(bert, replace(bert, shape=replace(GPT, **tiny)), 1, 2, with_trainer)
        return scale, "made-up ids, log-normal lengths"
    from benchmarks import corpus as text

    prose = text.prepare("prose", quick=True)
    bert = Workload(BERT, prose.directory, 8, hardware)
    scale = Scale(bert, replace(bert, shape=GPT), rounds=3, steps=2, with_trainer=with_trainer)
    return scale, prose.description


if __name__ == "__main__":
    with ended_by_sigterm():
        main()
