"""Where compiled kernels are kept, and that they work where they cannot be kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pipeline.base.jit

_KERNEL = """
from pipeline.base.jit import kernel

@kernel
def doubled(number):
    return number + number

print(doubled(21), doubled.stats.cache_path)
"""


def _run(folder: Path, **environment: str) -> list[str]:
    """What the kernel gives in a process that imports a copy of the package from ``folder``."""
    package = folder / "pipeline" / "base"
    package.mkdir(parents=True)
    shutil.copy(pipeline.base.jit.__file__, package)
    script = folder / "script.py"
    script.write_text(_KERNEL)
    found = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def test_a_kernel_is_kept_beside_its_source(tmp_path: Path) -> None:
    assert _run(tmp_path, NUMBA_CACHE_DIR="") == ["42", str(tmp_path / "__pycache__")]
    assert list((tmp_path / "__pycache__").glob("*.nbc"))


def test_a_kernel_is_kept_where_the_user_says(tmp_path: Path) -> None:
    result, place = _run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept"))
    assert result == "42"
    assert list(Path(place).relative_to(tmp_path / "kept").parts)
    assert list(Path(place).glob("*.nbc"))


def test_a_kernel_works_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").touch()
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "cache")
    assert _run(tmp_path, NUMBA_CACHE_DIR=nowhere, HOME=nowhere, XDG_CACHE_HOME=nowhere) == ["42", "None"]
