"""How a command is declared: its parser, what it runs, the arguments that many share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Command = Callable[[argparse.Namespace, list[str]], int]
"""What a command runs: its arguments, the overrides of config keys; returns the exit status."""


def add_command(
    commands: Any, name: str, run: Command, help_text: str, *, overrides: bool = False
) -> argparse.ArgumentParser:
    """Declare one command.

    Args:
        commands: what ``add_subparsers`` or :func:`add_group` returned.
        run: what it runs.
        overrides: whether keys of the config may follow its arguments.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog="Any key of the config can follow, e.g. --train.steps 100." if overrides else None,
    )
    parser.set_defaults(run=run, takes_overrides=overrides)
    return parser


def add_group(commands: Any, name: str, help_text: str) -> Any:
    """Declare a command that has commands of its own; returns where those are added."""
    parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND")


def add_accept_change(parser: argparse.ArgumentParser) -> None:
    """``--accept-change KEY``, on every command that hands a run's arguments to `pretrain train`."""
    parser.add_argument(
        "--accept-change", action="append", default=[], metavar="KEY", help="resume although this key has changed"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, on every command that prints facts."""
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
