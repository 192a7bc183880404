"""The `pretrain` command. Targets are imported inside functions, so that help and config checks answer at once.

Exit status: 0 done; 2 the user must change something (one message, no traceback); 1 a bug.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError

Command = Callable[[argparse.Namespace, list[str]], int]

_ENVIRONMENT_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
"""What a path or a disk refuses, wherever it is touched: the user must change it, the program cannot."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = build_parser()
    namespace, rest = parser.parse_known_args(arguments)
    if rest and not namespace.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status = int(namespace.run(namespace, rest) or 0)
        sys.stdout.flush()  # here, where a closed pipe is caught, and not when the interpreter ends
        return status
    except UserError as error:
        print(f"pretrain: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `pretrain ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        place = f": {error.filename}" if error.filename is not None else ""
        print(f"pretrain: error: {error.strerror}{place}. Name another path, or make room there.", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pretrain BERT- and GPT-family models: corpus, training, monitoring, Hugging Face export.",
        epilog="Keys of a config file can be overridden on the command line: --data.sequence_length 128",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_corpus_commands(commands)
    _add_run_commands(commands)
    _add_config_commands(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(version("pretrain"))
        parser.exit()


def _add(commands: Any, name: str, run: Command, help_text: str, *, overrides: bool = False) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog="Any key of the config can follow, e.g. --train.steps 100." if overrides else None,
    )
    parser.set_defaults(run=run, takes_overrides=overrides)
    return parser


def _group(commands: Any, name: str, help_text: str) -> Any:
    parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def _local_path(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; give the directory of the corpus where it is local")
    return Path(text)


def _add_corpus_commands(commands: Any) -> None:
    corpus = _group(commands, "corpus", "build, verify, describe and convert corpora")
    build = _add(corpus, "build", corpus_build, "make a corpus directory from text", overrides=True)
    build.add_argument("config", type=Path, help="corpus config (YAML)")
    build.add_argument("--output", type=Path, required=True, metavar="DIR", help="corpus directory to make")
    build.add_argument("--processes", type=int, metavar="N", help="worker processes (default: one a core)")
    _add_json(build)
    verify = _add(corpus, "verify", corpus_verify, "check every checksum and count of a corpus")
    stats = _add(corpus, "stats", corpus_stats, "print what a corpus holds")
    verify.add_argument("directory", type=_local_path, help="corpus directory")
    stats.add_argument("directory", help="corpus directory or URL")
    for parser in (verify, stats):
        _add_json(parser)
    _add_interchange_commands(corpus)
    where = _add(corpus, "where", corpus_where, "list the steps at which a run sees a document", overrides=True)
    where.add_argument("--document", required=True, metavar="ID", help="as `pretrain batch` prints it")
    where.add_argument("--config", type=Path, required=True, help="run config (YAML)")
    _add_json(where)
    rows = _add(corpus, "count-rows", corpus_count_rows, "make the row tables that a remote corpus needs")
    rows.add_argument("directory", type=_local_path, help="corpus directory")
    rows.add_argument("--packing", default="best_fit", help="as data.packing (default best_fit)")
    rows.add_argument("--kind", choices=("bert", "gpt"), required=True, help="special tokens of the rows")
    rows.add_argument("--sequence-length", type=int, required=True, metavar="S", help="as data.sequence_length")
    _add_json(rows)


def _add_interchange_commands(corpus: Any) -> None:
    source = _add(corpus, "import", corpus_import, "make a corpus directory from documents tokenised elsewhere")
    source.add_argument("source", type=Path, help="Megatron-LM pair, or folder of `datasets.save_to_disk` or Parquet")
    source.add_argument("--output", type=Path, required=True, metavar="DIR", help="corpus directory to make")
    source.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer of the source: folder or hub name")
    source.add_argument("--format", choices=("megatron", "datasets"), help="default: what is found")
    source.add_argument("--name", help="first part of the documents' names (default: the last part of the path)")
    source.add_argument("--validation-share", type=float, metavar="X", help="documents held out (default 0.005)")
    source.add_argument("--shard-tokens", type=int, metavar="N", help="a shard closes at N tokens")
    source.add_argument("--shard-documents", type=int, metavar="N", help="or at N documents")
    source.add_argument("--block-tokens", type=int, metavar="N", help="a record of a shard closes at N tokens")
    target = _add(corpus, "export", corpus_export, "write a corpus as Megatron-LM pairs or a folder of `datasets`")
    target.add_argument("directory", help="corpus directory or URL")
    target.add_argument("--output", type=Path, required=True, metavar="PATH", help="folder to make")
    target.add_argument("--format", choices=("megatron", "datasets"), required=True)
    target.add_argument("--sentences", action="store_true", help="write the borders of sentences")
    eod = "end documents with the tokenizer's eos (default: megatron yes, datasets no)"
    target.add_argument("--append-eod", action=argparse.BooleanOptionalAction, help=eod)
    for parser in (source, target):
        parser.add_argument(
            "--split", nargs="+", default=[], metavar="S", help="splits (default: all that training uses)"
        )
        _add_json(parser)


def _add_run_commands(commands: Any) -> None:
    train = _add(commands, "train", run_train, "train, or go on training, a run", overrides=True)
    train.add_argument("config", type=Path, help="run config (YAML)")
    batch = _add(commands, "batch", run_batch, "replay the batch of a step, without a model", overrides=True)
    batch.add_argument("config", type=Path, help="run config (YAML)")
    batch.add_argument("--step", type=int, required=True, metavar="K", help="step, counted from 1 as in the metrics")
    batch.add_argument("--world-size", type=int, default=1, metavar="W", help="assemble it from the shares of W ranks")
    batch.add_argument("--rows", type=int, default=4, metavar="N", help="rows shown as text (default 4)")
    _add_json(batch)
    export = _add(commands, "export", run_export, "write a run's model as a Hugging Face folder")
    export.add_argument("run_directory", type=Path, help="run directory")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    export.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    export.add_argument("--corpus", metavar="DIR", help="where the run's corpus is now, if it has moved")
    _add_json(export)
    report = _add(commands, "report", run_report, "draw a run's metrics into one HTML file")
    report.add_argument("run_directory", type=Path, help="run directory")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run directory")
    launch = _group(commands, "launch", "start the ranks of a run")
    torchrun = _add(launch, "torchrun", launch_torchrun, "train on this machine, one process a GPU", overrides=True)
    torchrun.add_argument("config", type=Path, help="run config (YAML)")
    torchrun.add_argument("--processes", type=int, metavar="N", help="ranks (default: one a GPU, or 1)")
    torchrun.add_argument("--print", action="store_true", dest="only_print", help="print the command and stop")
    requeue = _add(launch, "requeue", launch_requeue, "put this SLURM job back if its run was stopped", overrides=True)
    requeue.add_argument("config", type=Path, help="run config (YAML)")
    demo = _add(commands, "demo", run_demo, "run the whole pipeline on the books in demo/")
    demo.add_argument("--fresh", action="store_true", help="delete runs/demo and corpora/demo first")


def _add_config_commands(commands: Any) -> None:
    config = _group(commands, "config", "check and show configs")
    check = _add(config, "check", config_check, "check config files and report every problem")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    show = _add(config, "show", config_show, "print a config resolved, with the numbers that follow", overrides=True)
    show.add_argument("file", type=Path, metavar="FILE")
    show.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks to plan for (default 1)")
    _add_json(show)


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        text = "; ".join(map(str, text)) if isinstance(text, list) else text
        print(f"{name.replace('_', ' '):<{width}}  {text}")


def _print_lines(lines: Sequence[str], facts: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def _progress_line(what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def corpus_build(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_corpus_config
    from pipeline.corpus.build import build_corpus

    summary = build_corpus(
        load_corpus_config(namespace.config, overrides), namespace.output, processes=namespace.processes
    )
    _print_lines(summary.lines(), summary.as_dict(), namespace.json)
    return 0


def corpus_verify(namespace: argparse.Namespace, _: list[str]) -> int:
    from dataclasses import asdict

    from pipeline.shards.verify import verify_corpus

    facts = verify_corpus(namespace.directory, _progress_line("shards") if sys.stderr.isatty() else None)
    _print_facts({"verified": str(namespace.directory), **asdict(facts)}, namespace.json)
    return 0


def corpus_stats(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.corpus import stats

    facts = stats.corpus_stats(namespace.directory)
    _print_lines(stats.stats_lines(facts), facts, namespace.json)
    return 0


def corpus_import(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.config.corpus import ShardConfig
    from pipeline.corpus.importing import import_corpus

    sizes = {"tokens": namespace.shard_tokens, "documents": namespace.shard_documents}
    sizes["block_tokens"] = namespace.block_tokens
    summary = import_corpus(
        namespace.source,
        namespace.output,
        tokenizer=namespace.tokenizer,
        form=namespace.format,
        splits=namespace.split,
        name=namespace.name,
        validation_share=namespace.validation_share,
        shards=ShardConfig(**{name: size for name, size in sizes.items() if size is not None}),
    )
    _print_lines(summary.lines(), summary.as_dict(), namespace.json)
    return 0


def corpus_export(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.corpus.exporting import export_corpus

    summary = export_corpus(
        namespace.directory,
        namespace.output,
        form=namespace.format,
        splits=namespace.split,
        append_eod=namespace.append_eod,
        sentences=namespace.sentences,
    )
    _print_lines(summary.lines(), summary.as_dict(), namespace.json)
    return 0


def corpus_where(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_run_config
    from pipeline.train.provenance import document_steps, lines_of

    progress = _progress_line("shards searched") if sys.stderr.isatty() else None
    facts = document_steps(load_run_config(namespace.config, overrides), namespace.document, progress)
    _print_lines(lines_of(facts), facts, namespace.json)
    return 0


def corpus_count_rows(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.data.row_tables import count_rows

    facts = count_rows(namespace.directory, namespace.packing, namespace.kind, namespace.sequence_length)
    _print_facts(facts, namespace.json)
    return 0


def run_train(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.base.logs import configure_logging
    from pipeline.base.ranks import rank_facts
    from pipeline.config.derived import batch_plan
    from pipeline.config.loading import load_run_config

    config = load_run_config(namespace.config, overrides)
    facts = rank_facts()
    configure_logging(facts.rank, facts.world_size)
    batch_plan(config, facts.world_size)  # refuse before torch is imported
    from pipeline.train.run import train

    train(config, facts)
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

    report = export_run(namespace.run_directory, namespace.output, namespace.step, corpus=namespace.corpus)
    _print_facts(report.facts(), namespace.json)
    return 0


def run_report(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.monitor.report import write_report

    print(write_report(namespace.run_directory, namespace.output))
    return 0


def launch_torchrun(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.torchrun import launch

    return launch(namespace.config, namespace.processes, overrides, only_print=namespace.only_print)


def launch_requeue(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.launch.requeue import requeue

    requeue(namespace.config, overrides)
    return 0


def run_demo(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.demo import run

    return run(fresh=namespace.fresh)


def config_check(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.config.loading import ConfigError, load_any_config

    failed = 0
    for file in namespace.files:
        try:
            load_any_config(file)
            print(f"{file}: ok")
        except ConfigError as error:
            failed += 1
            print(error, file=sys.stderr)
    return 2 if failed else 0


def config_show(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_any_config, to_plain, to_yaml
    from pipeline.config.run import RunConfig

    config = load_any_config(namespace.file, overrides)
    if isinstance(config, RunConfig):
        from pipeline.train.summary import derived_numbers

        numbers = derived_numbers(config, namespace.world_size)
    else:
        numbers = {}
    if namespace.json:
        print(json.dumps({"config": to_plain(config), "derived": numbers}, indent=2, ensure_ascii=False))
        return 0
    print(to_yaml(config), end="")
    if numbers:
        print("\n# what follows from it")
        _print_facts({f"# {name}": value for name, value in numbers.items()}, as_json=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
