"""The training step on one GPU: `python benchmarks/gpu.py --only NAME ... [--json PATH]`, without a network.

Every call first compares losses and gradients with fp32 and with padded documents, then measures what is asked for; a
call ends in less than ten minutes (`--minutes`), so the whole takes several, which `--json` joins in one file. Peers
that are not installed are left out, and the file says so. `--device cpu --reduced` runs everything in small.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import WORK, versions
from benchmarks.record import Result, Table, join_record, print_record
from benchmarks.workload import Hardware, Shape, Workload, synthetic_corpus
from pipeline.train.faults import ended_by_sigterm

if TYPE_CHECKING:
    from benchmarks.gpu_entries import Scale

PACKAGES: Final = ("torch", "transformers", "accelerate", "deepspeed", "lightning", "numpy", "pretrain")
_BERT: Final = Shape("bert", 768, 12, 12, 30_522, 512)
_GPT: Final = Shape("gpt2", 768, 12, 12, 50_257, 1024)
SIZES: Final[dict[str, tuple[Shape, float]]] = {
    "bert_base_512": (_BERT, 600_000),
    "bert_base_128": (replace(_BERT, sequence_length=128), 700_000),
    "bert_large_512": (replace(_BERT, hidden_size=1024, num_layers=24, num_heads=16), 200_000),
    "gpt2_124m": (_GPT, 500_000),
    "gpt2_355m": (replace(_GPT, hidden_size=1024, num_layers=24, num_heads=16), 200_000),
    "gpt2_774m": (replace(_GPT, hidden_size=1280, num_layers=36, num_heads=20), 100_000),
    "gpt2_1558m": (replace(_GPT, hidden_size=1600, num_layers=48, num_heads=25), 50_000),
}
"""Model sizes and the real tokens a second to reach with them on an H200."""

_SYNTHETIC: Final = (20_000_000, 300)
"""Tokens of the made-up corpus, and of a document on average."""

_SYNTHETIC_REDUCED: Final = (40_000, 40)


@dataclass
class Session:
    """One call: what it was asked for and what it has found."""

    options: argparse.Namespace
    scale: Scale
    results: list[Result] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)

    def workload(self, shape: Shape, num_rows: int) -> Workload:
        """With the corpus that was named, or a made-up one for the family."""
        options = self.options
        if options.reduced:
            length = 32 if shape.sequence_length <= 128 else 64
            tiny: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 512}
            shape, num_rows = replace(shape, sequence_length=length, **tiny), 2
        size = _SYNTHETIC_REDUCED if options.reduced else _SYNTHETIC
        made_up = WORK / f"made-up-{shape.vocab_size}"
        corpus = options.corpus or synthetic_corpus(made_up, shape.vocab_size, *size)
        threads = 1 if options.reduced else len(os.sched_getaffinity(0))
        hardware = Hardware(options.device, "bf16", threads)
        return Workload(shape, corpus, num_rows, hardware)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure and print; after every entry the JSON is written anew if asked for."""
    options = _options(arguments)
    began = time.monotonic()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here; `--device cpu --reduced` runs everything in small")
    torch.set_float32_matmul_precision("high")
    if options.reduced:
        torch.set_num_threads(1)  # the models are too small to share
    session = Session(options, _scale(options, began + 60 * options.minutes))
    _check(session)
    for name in options.only:
        print(f"{name} ({(time.monotonic() - began) / 60:.1f} minutes)", flush=True)
        {**dict.fromkeys(SIZES, _measure_size), **OTHERS}[name](session, name)
        record = _join(session)  # what has been measured stays if the call is ended
    print_record(record)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [*SIZES, *OTHERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, help="join the results into this file")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing new after so many (default 9)")
    parser.add_argument("--run-minutes", type=float, default=5.0, help="length of the training run (default 5)")
    parser.add_argument("--corpus", type=Path, help="a corpus directory; default: made-up ids of log-normal lengths")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--reduced", action="store_true", help="tiny models: a test of this program, not of a machine")
    return parser.parse_args(arguments)


def _scale(options: argparse.Namespace, deadline_seconds: float) -> Scale:
    from benchmarks.gpu_entries import Scale

    if options.reduced:
        return Scale(1, 1, (128,), True, 0, deadline_seconds)
    return Scale(30, 10, (8192, 16_384, 32_768, 65_536, 131_072), True, 8, deadline_seconds)


def _check(session: Session) -> None:
    """Correctness first: nothing is timed that is not right."""
    from benchmarks.correctness import as_table, check_numbers

    small: dict[str, Any] = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "sequence_length": 256}
    works = [session.workload(replace(shape, **small), 8) for shape in (_BERT, _GPT)]
    session.tables["correctness"] = as_table([row for work in works for row in check_numbers(work, compiled=True)])


def _measure_size(session: Session, name: str) -> None:
    from benchmarks.gpu_entries import Target, measure_size

    shape, tokens_a_second = SIZES[name]
    results, table = measure_size(name, Target(shape, tokens_a_second), session.workload(shape, 64), session.scale)
    session.results += results
    session.tables[name] = table


def _ladder(session: Session, name: str) -> None:
    from benchmarks.ladder import measure_ladder, rungs

    shape, num_rows = (_BERT, 64) if name == "ladder_bert" else (_GPT, 16)
    work, scale = session.workload(shape, num_rows), session.scale
    chosen = rungs(shape.is_causal, graphs=session.options.device == "cuda")
    session.tables[name] = measure_ladder(
        work, chosen, lambda step: step.seconds_a_step(scale.steps, scale.warmup_steps)
    )


def _engines(session: Session, name: str) -> None:
    from benchmarks.engine_overhead import measure_engines, missing_library

    missing = missing_library()
    if missing:
        session.scale.skipped[name] = missing
        return
    work = session.workload(_BERT, 64)
    session.tables[name] = measure_engines(work, not session.options.reduced, session.scale.steps)


def _training_run(session: Session, name: str) -> None:
    from benchmarks.training_run import measure_run

    run = measure_run(session.workload(_BERT, 64), session.options.run_minutes, compiled=True)
    session.results += run.results
    session.tables |= run.tables


OTHERS: Final[dict[str, Callable[[Session, str], None]]] = {
    "ladder_bert": _ladder,
    "ladder_gpt": _ladder,
    "engines": _engines,
    "training_run": _training_run,
}


def _join(session: Session) -> dict[str, Any]:
    import torch

    options = session.options
    on_cuda = options.device == "cuda"
    found = versions(*PACKAGES) | ({"CUDA": str(torch.version.cuda)} if on_cuda else {})
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "numbers": "bf16 (fp32 weights and moments), no dropout, 15 % of BERT's tokens predicted",
        "data": f"corpus {options.corpus.name}" if options.corpus else "made-up ids, log-normal lengths",
        "skipped": session.scale.skipped,
    }
    if options.reduced:
        facts["reduced"] = "tiny models: no figure here says anything of a machine"
    return join_record(options.json, "gpu", found, session.results, session.tables, facts)


if __name__ == "__main__":
    with ended_by_sigterm():
        main()
