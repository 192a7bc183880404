"""`pretrain config ...`: check and show configs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.commands.parsers import add_command, add_group, add_json
from pipeline.commands.printing import print_facts


def add_config_commands(commands: Any) -> None:
    """Declare them."""
    config = add_group(commands, "config", "check and show configs")
    check = add_command(config, "check", config_check, "check config files and report every problem")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    show = add_command(
        config, "show", config_show, "print a config resolved, with the numbers that follow", overrides=True
    )
    show.add_argument("file", type=Path, metavar="FILE")
    show.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks to plan for (default 1)")
    add_json(show)


def config_check(namespace: argparse.Namespace, _: list[str]) -> int:
    from pipeline.config.loading import ConfigError, load_any_config

    failed = 0
    for file in namespace.files:
        try:
            form = _form(load_any_config(file))
            print(f"{file}: ok" + (f"\n  model: {form}" if form else ""))
        except ConfigError as error:
            failed += 1
            print(error, file=sys.stderr)
        except UserError as error:
            failed += 1
            print(f"{file}: {error}", file=sys.stderr)
    return 2 if failed else 0


def _form(config: Any) -> str | None:
    """How a model reads its rows, where that is a question: for family `auto` a trial tells; None: packed."""
    from pipeline.config.hugging_face import AUTO, PADDED_FAMILIES
    from pipeline.config.run import RunConfig

    if not isinstance(config, RunConfig) or config.model.family not in (AUTO, *PADDED_FAMILIES):
        return None
    from pipeline.models.forms import check_counts, check_form, form_of

    form = form_of(config)
    check_form(config, {})
    check_counts(config)
    return form


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
        print_facts({f"# {name}": value for name, value in numbers.items()}, as_json=False)
    return 0
