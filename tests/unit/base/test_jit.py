"""Kernels on disk: found again by the next process, and made anew when a kernel of another file changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.base
from pipeline.base import jit

CALLED = "from pipeline.base.jit import kernel\n\n@kernel\ndef called(x):\n    return x + {number}\n"
CALLING = """
from pipeline.base.jit import cache_folder, kernel
from pipeline.base.called import called

@kernel
def calling(x):
    return 2 * called(x)

if __name__ == "__main__":
    print(calling(20), sum(calling.stats.cache_hits.values()), cache_folder())
"""


def package(directory: Path) -> Path:
    """A package with two kernels, one in each of two files, and the real `jit.py` with what it imports."""
    base = directory / "pipeline/base"
    base.mkdir(parents=True)
    for folder in (base, base.parent):
        (folder / "__init__.py").touch()
    for name in ("jit.py", "logs.py"):
        shutil.copy(Path(pipeline.base.__path__[0]) / name, base)
    (base / "called.py").write_text(CALLED.format(number=1))
    (base / "calling.py").write_text(CALLING)
    return base


def run(directory: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.base.calling"],
        cwd=directory,
        env={**{name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_next_process_finds_the_machine_code_unless_a_called_kernel_changed(tmp_path: Path) -> None:
    base = package(tmp_path)
    first, second = run(tmp_path), run(tmp_path)
    assert (first[:2], second[:2]) == (["42", "0"], ["42", "1"])
    assert Path(first[2]).parent == base.parent / "__pycache__"
    (base / "called.py").write_text(CALLED.format(number=2))
    assert run(tmp_path)[:2] == ["44", "0"]
    elsewhere = run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "given"))
    assert elsewhere[:2] == ["44", "0"]
    assert Path(elsewhere[2]).parent == tmp_path / "given"


def test_a_package_that_cannot_be_written_has_its_kernels_in_the_user_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(jit.os, "access", lambda path, mode: False)
    assert jit.cache_folder.__wrapped__().parent == tmp_path / ".cache/pretrain"


def test_a_kernel_works_where_nothing_can_be_kept(tmp_path: Path) -> None:
    base = package(tmp_path)
    for folder in (base, base.parent, tmp_path):
        (folder / "__pycache__").touch()
    nowhere = str(tmp_path / "__pycache__" / "cache")
    assert run(tmp_path, HOME=nowhere, XDG_CACHE_HOME=nowhere)[:2] == ["42", "0"]


@pytest.mark.parametrize(("ending", "content"), [(".nbi", b""), (".nbc", b"no pickle")])
def test_machine_code_that_cannot_be_read_is_made_again(tmp_path: Path, ending: str, content: bytes) -> None:
    package(tmp_path)
    folder = Path(run(tmp_path)[2])
    kept = list(folder.rglob(f"*{ending}"))
    assert kept
    for path in kept:
        path.write_bytes(content)
    assert run(tmp_path)[:2] == ["42", "0"]
    assert run(tmp_path)[:2] == ["42", "1"]


FULL_DISK = """
import errno, os
from numba.core.caching import IndexDataCacheFile

def full(self, *rest):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

IndexDataCacheFile.save = full
"""


def test_a_full_disk_stops_no_kernel(tmp_path: Path) -> None:
    base = package(tmp_path)
    (base / "__init__.py").write_text(FULL_DISK)
    assert run(tmp_path)[:2] == ["42", "0"]


def test_machine_code_for_other_types_is_not_taken(tmp_path: Path) -> None:
    base = package(tmp_path)
    folder = Path(run(tmp_path)[2])
    (for_integers,) = folder.rglob("calling.calling*.nbc")
    (base / "calling.py").write_text(CALLING.replace("calling(20)", "calling(20.5)"))
    os.utime(base / "calling.py", ns=(1, 1))
    assert run(tmp_path)[0] == "43.0"
    (for_floats,) = Path(run(tmp_path)[2]).rglob("calling.calling*.nbc")
    shutil.copy(for_integers, for_floats)  # as two processes that choose one name at once
    assert run(tmp_path)[0] == "43.0"
