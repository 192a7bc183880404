"""One way to compile a kernel with numba: kept on disk, without the interpreter's lock, with C's integer arithmetic.

The machine code lies in ``pipeline/__pycache__``, or under ``NUMBA_CACHE_DIR`` where that is set; where the package
cannot be written, in ``~/.cache/pretrain``; where that cannot be written either, every process compiles anew. Numba
compiles again when a kernel's own file, the processor or numba's version changes, but would not notice a change of a
kernel that is called from another file and was compiled into it: so the folder is named by a digest of all files with
kernels.

Importing numba takes about half a second: modules with kernels are imported where data are read, not by the command
line.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

Whole: TypeAlias = int | np.integer[Any]
"""A whole number in a kernel. Numba compiles once for every type that it is called with: `int64` and `int32` make two,
and of one `int64` and one `uint64` it makes a float."""

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy"}


def kernel(function: Function) -> Function:
    """Compile a function of numbers and arrays at its first call with their types.

    An integer divided by zero gives 0 and no error; indices are not checked.
    """
    with _own_folder():
        try:
            return cast(Function, numba.njit(function, cache=True, **_OPTIONS))
        except RuntimeError:  # there is no place to keep it
            return cast(Function, numba.njit(function, **_OPTIONS))


@contextmanager
def _own_folder() -> Iterator[None]:
    """Numba reads where to keep machine code when a function is decorated; other users of numba keep their folder."""
    settings = cast(Any, numba.config)
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(cache_folder())
    try:
        yield
    finally:
        settings.CACHE_DIR = before


@cache
def cache_folder() -> Path:
    """Where the machine code of this version of the kernels lies."""
    package = Path(__file__).parents[1]
    beside = package / "__pycache__"
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        parent = Path(given)
    elif os.access(beside if beside.is_dir() else package, os.W_OK):
        parent = beside
    else:
        parent = Path("~/.cache/pretrain").expanduser()
    digest = hashlib.sha256()
    for path in sorted(path for name in _PACKAGES for path in (package / name).glob("*.py")):
        content = path.read_bytes()
        if b"@kernel" in content:
            digest.update(content)
    return parent / f"kernels-{digest.hexdigest()[:16]}"


_PACKAGES: Final = ("base", "data", "objectives")
"""Only these may import numba (docs/development.md)."""
