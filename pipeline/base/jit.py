"""One way to compile a kernel with numba: kept on disk, without the interpreter's lock, with C's integer arithmetic.

The machine code lies in ``pipeline/__pycache__``, or under ``NUMBA_CACHE_DIR`` where that is set; where the package
cannot be written, in ``~/.cache/pretrain``; where that cannot be written either, every process compiles anew. What is
on disk only saves time: a full disk, or a file that was cut short, stops no run. Numba compiles again when a kernel's
own file, the processor or numba's version changes, but would not notice a change of a kernel that is called from
another file and was compiled into it: so the folder is named by a digest of all files with kernels.

Importing numba takes about half a second: modules with kernels are imported where data are read, not by the command
line.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache

from pipeline.base.logs import get_logger

Function = TypeVar("Function", bound=Callable[..., Any])

Whole: TypeAlias = int | np.integer[Any]
"""A whole number in a kernel. Numba compiles once for every type that it is called with: `int64` and `int32` make two,
and of one `int64` and one `uint64` it makes a float."""

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy"}


def kernel(function: Function) -> Function:
    """Compile a function of numbers and arrays at its first call with their types.

    An integer divided by zero gives 0 and no error; indices are not checked.
    """
    compiled: Any = numba.njit(function, **_OPTIONS)
    with _own_folder():
        try:
            compiled._cache = _Kept(function)  # as its `enable_caching` does, which njit(cache=True) calls
        except RuntimeError as error:
            get_logger("kernels").debug("there is no place to keep it: %s", error)
    return cast(Function, compiled)


class _Kept(FunctionCache):
    """Machine code on disk that is compiled anew where it cannot be read, and not kept where it cannot be written."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel compiled for arguments of the types ``sig``, or None."""
        try:
            found = super().load_overload(sig, target_context)
        except (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, pickle.PickleError) as error:
            get_logger("kernels").debug("kept machine code cannot be read: %s", error)
            self._forget()
            return None
        # Two processes that begin to keep the same kernel for different types may give both files one name.
        return found if found is None or found.signature.args == sig else None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a kernel compiled for arguments of the types ``sig``."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            get_logger("kernels").debug("machine code not kept: %s", error)

    def _forget(self) -> None:
        """Begin with an empty list of files: saving reads it, too."""
        try:
            self.flush()
        except OSError:
            self.disable()


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
