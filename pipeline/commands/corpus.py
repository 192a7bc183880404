"""`pretrain corpus ...`: build, verify, describe and convert corpora."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pipeline.commands.parsers import add_command, add_group, add_json
from pipeline.commands.printing import print_facts, print_lines, progress_line


def add_corpus_commands(commands: Any) -> None:
    """Declare them."""
    corpus = add_group(commands, "corpus", "build, verify, describe and convert corpora")
    build = add_command(corpus, "build", corpus_build, "make a corpus directory from text", overrides=True)
    build.add_argument("config", type=Path, help="corpus config (YAML)")
    synthesize = add_command(
        corpus, "synthesize", corpus_synthesize, "make a corpus directory of a synthetic language", overrides=True
    )
    synthesize.add_argument("config", type=Path, help="config of the synthetic corpus (YAML)")
    for parser in (build, synthesize):
        parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="corpus directory to make")
        parser.add_argument("--processes", type=int, metavar="N", help="worker processes (default: one a core)")
        add_json(parser)
    verify = add_command(corpus, "verify", corpus_verify, "check every checksum and count of a corpus")
    stats = add_command(corpus, "stats", corpus_stats, "print what a corpus holds")
    verify.add_argument("directory", type=_local_path, help="corpus directory")
    stats.add_argument("directory", help="corpus directory or URL")
    for parser in (verify, stats):
        add_json(parser)
    _add_interchange_commands(corpus)
    where = add_command(corpus, "where", corpus_where, "list the steps at which a run sees a document", overrides=True)
    where.add_argument("--document", required=True, metavar="ID", help="as `pretrain batch` prints it")
    where.add_argument("--config", type=Path, required=True, help="run config (YAML)")
    add_json(where)
    rows = add_command(corpus, "count-rows", corpus_count_rows, "make the row tables that a remote corpus needs")
    rows.add_argument("directory", type=_local_path, help="corpus directory")
    rows.add_argument("--packing", default="best_fit", help="as data.packing (default best_fit)")
    rows.add_argument("--kind", choices=("bert", "gpt"), required=True, help="special tokens of the rows")
    rows.add_argument("--sequence-length", type=int, required=True, metavar="S", help="as data.sequence_length")
    rows.add_argument("--context-tokens", type=int, default=0, metavar="C", help="as data.context_tokens (default 0)")
    add_json(rows)


def _local_path(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; give the directory of the corpus where it is local")
    return Path(text)


def _add_interchange_commands(corpus: Any) -> None:
    source = add_command(corpus, "import", corpus_import, "make a corpus directory from documents tokenised elsewhere")
    source.add_argument("source", type=Path, help="Megatron-LM pair, or folder of `datasets.save_to_disk` or Parquet")
    source.add_argument("--output", type=Path, required=True, metavar="DIR", help="corpus directory to make")
    source.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer of the source: folder or hub name")
    source.add_argument("--format", choices=("megatron", "datasets"), help="default: what is found")
    source.add_argument("--name", help="first part of the documents' names (default: the last part of the path)")
    source.add_argument("--validation-share", type=float, metavar="X", help="documents held out (default 0.005)")
    source.add_argument("--shard-tokens", type=int, metavar="N", help="a shard closes at N tokens")
    source.add_argument("--shard-documents", type=int, metavar="N", help="or at N documents")
    source.add_argument("--block-tokens", type=int, metavar="N", help="a record of a shard closes at N tokens")
    target = add_command(
        corpus, "export", corpus_export, "write a corpus as Megatron-LM pairs or a folder of `datasets`"
    )
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
        add_json(parser)


def corpus_build(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_corpus_config
    from pipeline.corpus.build import build_corpus

    summary = build_corpus(
        load_corpus_config(namespace.config, overrides), namespace.output, processes=namespace.processes
    )
    print_lines(summary.lines(), summary.as_dict(), namespace.json)
    return 0


def corpus_synthesize(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_synthetic_config
    from pipeline.corpus.synthesize import synthesize_corpus

    config = load_synthetic_config(namespace.config, overrides)
    summary = synthesize_corpus(config, namespace.output, processes=namespace.processes)
    print_lines(summary.lines(), summary.as_dict(), namespace.json)
    return 0


def corpus_verify(namespace: argparse.Namespace, _: list[str]) -> int:
    from dataclasses import asdict

    from pipeline.shards.verify import verify_corpus

    facts = verify_corpus(namespace.directory, progress_line("shards") if sys.stderr.isatty() else None)
    print_facts({"verified": str(namespace.directory), **asdict(facts)}, namespace.json)
    return 0


def corpus_stats(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.corpus import stats

    facts = stats.corpus_stats(namespace.directory)
    print_lines(stats.stats_lines(facts), facts, namespace.json)
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
    print_lines(summary.lines(), summary.as_dict(), namespace.json)
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
    print_lines(summary.lines(), summary.as_dict(), namespace.json)
    return 0


def corpus_where(namespace: argparse.Namespace, overrides: list[str]) -> int:
    from pipeline.config.loading import load_run_config
    from pipeline.train.provenance import document_steps, lines_of

    progress = progress_line("shards searched") if sys.stderr.isatty() else None
    facts = document_steps(load_run_config(namespace.config, overrides), namespace.document, progress)
    print_lines(lines_of(facts), facts, namespace.json)
    return 0


def corpus_count_rows(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.data.row_tables import count_rows

    facts = count_rows(
        namespace.directory, namespace.packing, namespace.kind, namespace.sequence_length, namespace.context_tokens
    )
    print_facts(facts, namespace.json)
    return 0
