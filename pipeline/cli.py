"""The `pretrain` command: its entry, and what becomes of errors. The commands are in `pipeline/commands/`.

Exit status: 0 done; 2 the user must change something (one message, no traceback); 1 a bug.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.base.errors import UserError
from pipeline.commands.checkpoint import add_checkpoint_commands
from pipeline.commands.config import add_config_commands
from pipeline.commands.corpus import add_corpus_commands
from pipeline.commands.launch import add_launch_commands
from pipeline.commands.run import add_run_commands

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
    add_corpus_commands(commands)
    add_run_commands(commands)
    add_checkpoint_commands(commands)
    add_launch_commands(commands)
    add_config_commands(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(version("pretrain"))
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
