"""Commands that train a run and read what it left: `pretrain train`, `bench`, `batch`, `export`, `status`, ..."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.commands.parsers import add_accept_change, add_command, add_json
from pipeline.commands.printing import print_facts, print_lines


def add_run_commands(commands: Any) -> None:
    """Declare them."""
    train = add_command(commands, "train", run_train, "train, or go on training, a run", overrides=True)
    train.add_argument("config", type=Path, help="run config (YAML)")
    add_accept_change(train)
    bench = add_command(commands, "bench", run_bench, "measure a config's step on this machine", overrides=True)
    bench.add_argument("config", type=Path, help="run config (YAML)")
    bench.add_argument("--steps", type=int, default=20, metavar="N", help="steps that are measured (default 20)")
    bench.add_argument("--warmup", type=int, default=5, metavar="N", help="steps before them (default 5)")
    bench.add_argument("--step", type=int, metavar="K", help="first step (default: the last stage's first)")
    choices, default = ("auto", "corpus", "synthetic"), "default: the corpus if it is there"
    bench.add_argument("--data", choices=choices, default="auto", help=f"what is read ({default})")
    bench.add_argument("--output", type=Path, metavar="FILE", help="write the facts as JSON, too")
    add_json(bench)
    batch = add_command(commands, "batch", run_batch, "replay the batch of a step, without a model", overrides=True)
    batch.add_argument("config", type=Path, help="run config (YAML)")
    batch.add_argument("--step", type=int, required=True, metavar="K", help="step, counted from 1 as in the metrics")
    batch.add_argument("--world-size", type=int, default=1, metavar="W", help="assemble it from the shares of W ranks")
    batch.add_argument("--rows", type=int, default=4, metavar="N", help="rows shown as text (default 4)")
    add_json(batch)
    export = add_command(commands, "export", run_export, "write a run's model as a Hugging Face folder")
    export.add_argument("run_directory", type=Path, help="run directory")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    export.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    export.add_argument("--corpus", metavar="DIR", help="where the run's corpus is now, if it has moved")
    export.add_argument(
        "--part",
        choices=("discriminator", "generator"),
        help="objective rtd: which one (default: discriminator)",
    )
    add_json(export)
    status = add_command(commands, "status", show_status, "say whether a run goes on, and how far it is")
    status.add_argument("run_directory", type=Path, help="run directory")
    add_json(status)
    report = add_command(commands, "report", run_report, "draw a run's metrics into one HTML file")
    report.add_argument("run_directory", type=Path, help="run directory")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run directory")
    demo = add_command(commands, "demo", run_demo, "run the whole pipeline on the books in demo/")
    demo.add_argument("--fresh", action="store_true", help="delete runs/demo and corpora/demo first")


def run_train(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.base.logs import configure_logging
    from pipeline.base.processes import process_start
    from pipeline.base.ranks import rank_facts
    from pipeline.config.derived import batch_plan
    from pipeline.config.loading import load_run_config
    from pipeline.train.faults import StopSignals

    signals = StopSignals()
    signals.install([signal.SIGUSR1])  # before torch is imported: a job may be preempted in its first seconds
    config = load_run_config(namespace.config, overrides)
    facts = rank_facts()
    configure_logging(facts.rank, facts.world_size)
    batch_plan(config, facts.world_size)  # refuse before torch is imported
    from pipeline.train.run import train

    try:
        train(config, facts, signals, process_start(), namespace.accept_change)
    except BaseException:
        signals.restore()
        raise
    # SLURM may send what it meant for the job's start before, whose step had the same number.
    signals.ignore()
    return 0


def run_bench(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.base.files import write_json_atomically
    from pipeline.base.logs import configure_logging
    from pipeline.base.ranks import rank_facts
    from pipeline.config.derived import batch_plan
    from pipeline.config.loading import load_run_config

    config = load_run_config(namespace.config, overrides)
    facts = rank_facts()
    configure_logging(facts.rank, facts.world_size)
    batch_plan(config, facts.world_size)  # refuse before torch is imported
    output = namespace.output
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"bench: --output is {output}; give a file in a directory that is there.")
    from pipeline.train.bench import bench
    from pipeline.train.bench_report import bench_lines, bench_record

    measured = bench(
        config,
        num_steps=namespace.steps,
        warmup_steps=namespace.warmup,
        data=namespace.data,
        step=namespace.step,
        facts=facts,
    )
    if facts.rank > 0:
        return 0
    record = bench_record(measured, " ".join(["pretrain", *sys.argv[1:]]))
    if output is not None:
        write_json_atomically(output, record)
    print_lines(bench_lines(record), record, namespace.json)
    return 0


def run_batch(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_run_config
    from pipeline.train.replay import print_batch, replay_batch

    config = load_run_config(namespace.config, overrides)
    replayed = replay_batch(config, namespace.step, namespace.world_size)
    if namespace.json:
        print(json.dumps(replayed.facts(), indent=2, ensure_ascii=False))
    else:
        print_batch(replayed, num_rows=namespace.rows)
    return 0


def run_export(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.export.run import export_run

    report = export_run(
        namespace.run_directory, namespace.output, namespace.step, corpus=namespace.corpus, part=namespace.part
    )
    print_facts(report.facts(), namespace.json)
    return 0


def show_status(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.launch.slurm_commands import job_state
    from pipeline.monitor.status import run_status, shown_status

    facts = run_status(namespace.run_directory, job_state)
    print_facts(facts if namespace.json else shown_status(facts), namespace.json)
    return 0


def run_report(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.monitor.report import write_report

    print(write_report(namespace.run_directory, namespace.output))
    return 0


def run_demo(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.demo import run

    return run(fresh=namespace.fresh)
