"""`make setup` refuses an unfit Python with a message, and does its work once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# A Python that says it is another version, or that lacks a module; Debian's python3 without python3-venv is the latter.
PRETENDER = """#!/bin/sh
exec {python} -c '
import sys
code = sys.argv[2]
{change}
exec(code)' "$@"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    return subprocess.run(["make", *arguments], cwd=checkout, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "sys.version_info = (3, 10, 4)",
            'pretrain needs Python 3.11 or 3.12, but "./python" is 3.10: run "make PYTHON=',
        ),
        ("sys.version_info = (3, 13, 0)", 'pretrain needs Python 3.11 or 3.12, but "./python" is 3.13'),
        ('sys.modules["ensurepip"] = None', "on Debian and Ubuntu install the package python3-venv"),
    ],
)
def test_an_unfit_python_is_refused(change: str, message: str, checkout: Path) -> None:
    python = checkout / "python"
    python.write_text(PRETENDER.format(python=sys.executable, change=change))
    python.chmod(0o755)
    done = make(checkout, "setup", "PYTHON=./python")
    assert done.returncode != 0
    assert message in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_is_done_once_and_again_when_the_versions_change(checkout: Path) -> None:
    stamp = checkout / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip install" not in make(checkout, "--dry-run", "setup").stdout
    os.utime(stamp, (1, 1))
    assert "pip install --quiet --disable-pip-version-check -c constraints.txt" in make(checkout, "-n", "test").stdout


def test_help_names_every_target(checkout: Path) -> None:
    phony = next(line for line in (checkout / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    text = make(checkout).stdout
    assert [name for name in phony.split()[1:] if f"make {name} " not in text and name != "help"] == []
