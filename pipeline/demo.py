"""`pretrain demo`: the whole pipeline on the books that the repository carries, from text to filled masks."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.files import write_json_atomically

CORPUS_CONFIG = Path("configs/corpus/demo.yaml")
RUN_CONFIG = Path("configs/demo.yaml")
CORPUS = Path("corpora/demo")
RUN = Path("runs/demo")
PROCESSES = 2
SENTENCES = (
    "She looked at her sister with great [MASK], and did not speak.",
    "There is a great deal of [MASK] in the house, said Mrs. Bennet.",
    "The whale rose out of the [MASK] and sank the boat.",
)


def run(fresh: bool = False) -> int:
    """Run what is not done yet, print the summary and write it to ``runs/demo/summary.json``.

    Args:
        fresh: delete the demo's corpus and run first.

    Raises:
        UserError: not called from a clone of the repository, or any step's own error.
    """
    if not CORPUS_CONFIG.exists() or not RUN_CONFIG.exists():
        raise UserError(f"pretrain demo: {RUN_CONFIG} is not here; change to a clone of the repository first.")
    if fresh:
        for directory in (CORPUS, RUN):
            shutil.rmtree(directory, ignore_errors=True)
    summary_path = RUN / "summary.json"
    if summary_path.exists():
        print(f"the demo has run before; `pretrain demo --fresh` runs it anew. From {summary_path}:\n")
        _print_summary(json.loads(summary_path.read_text(encoding="utf-8")))
        return 0
    started = time.monotonic()
    _say(1, f"corpus: text of {CORPUS_CONFIG} -> tokenizer -> shards in {CORPUS}")
    entropy = _build()
    _say(2, f"training: {RUN_CONFIG} on {PROCESSES} processes, DeepSpeed ZeRO-1 -> {RUN}")
    if status := _train():
        return status
    _say(3, f"export: the newest checkpoint -> {RUN / 'hf'}")
    difference = _export()
    _say(4, "masks filled by the export, in a process that has only transformers")
    from pipeline.export.probe import fill_mask

    filled = fill_mask(RUN / "hf", list(SENTENCES))
    _say(5, "report")
    from pipeline.monitor.report import write_report

    report = write_report(RUN)
    summary = _summary(entropy, difference, filled, time.monotonic() - started)
    write_json_atomically(summary_path, summary)
    _print_summary(summary)
    print(f"\n{summary_path} has these numbers; open {report} in a browser; the model is in {RUN / 'hf'}.")
    return 0


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)


def _build() -> float:
    """Build the corpus; returns the unigram entropy of its validation tokens, in nats."""
    from pipeline.config.loading import load_corpus_config
    from pipeline.corpus.build import build_corpus
    from pipeline.shards.files import LocalFiles
    from pipeline.shards.manifest import read_manifest

    summary = build_corpus(load_corpus_config(CORPUS_CONFIG), CORPUS)
    print("\n".join(summary.lines()), flush=True)
    return float(read_manifest(LocalFiles(CORPUS)).extra["validation_unigram_entropy"])


def _train() -> int:
    from pipeline.launch.torchrun import launch

    os.environ.setdefault("WANDB_MODE", "offline")  # a demo asks nobody for an account
    return launch(RUN_CONFIG, PROCESSES)


def _export() -> float:
    from pipeline.export.run import export_run

    if (RUN / "hf").exists():  # a demo that was interrupted after its export
        shutil.rmtree(RUN / "hf")
    report = export_run(RUN, RUN / "hf")
    print(f"{report.class_name}, {report.num_parameters:,} parameters, step {report.step}", flush=True)
    return report.max_abs_logit_difference


def _summary(entropy: float, difference: float, filled: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    from pipeline.monitor.sinks import read_metrics

    metrics = read_metrics(RUN)
    return {
        "initial_loss": metrics[0]["loss"],
        "final_loss": metrics[-1]["loss"],
        "unigram_entropy": entropy,
        "validation_loss": [line["validation_loss"] for line in metrics if "validation_loss" in line][-1],
        "seconds": round(seconds, 1),
        "tokens_per_second": round(statistics.median(line["tokens_per_second"] for line in metrics), 1),
        "export_max_abs_logit_difference": difference,
        "fill_mask": filled,
    }


def _print_summary(summary: dict[str, Any]) -> None:
    print()
    for name, value in summary.items():
        if name != "fill_mask":
            print(f"{name:<32} {value:.4g}" if isinstance(value, float) else f"{name:<32} {value}")
    for sentence in summary["fill_mask"]:
        print(f"\n  {sentence['sentence']}")
        for prediction in sentence["predictions"]:
            print(f"    {prediction['probability']:6.1%}  {prediction['token']}")
    margin = summary["unigram_entropy"] - summary["validation_loss"]
    print(
        f"\nThe validation loss is {margin:.2f} nats "
        + ("below the unigram entropy: the model has learned context." if margin > 0 else "ABOVE the unigram entropy.")
    )
