"""One way to compile a kernel with numba: kept on disk, without the interpreter's lock, with C's integer arithmetic.

The machine code lies in ``__pycache__`` beside the source, or under ``NUMBA_CACHE_DIR`` where that is set; where that
cannot be written, in the user's cache folder; where that cannot be written either, every process compiles anew. It is
made anew when the kernel's own file, the processor or the version of numba changes, but not when a kernel that it calls
from another file does: what is called across files (``keyed_kernels``) is settled and pinned by tests.

Importing numba takes about half a second: modules with kernels are imported where data are read, not by the command
line.
"""

from __future__ import annotations

from collections.abc import Callable
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
    try:
        return cast(Function, numba.njit(function, cache=True, **_OPTIONS))
    except RuntimeError:  # there is no place to keep it
        return cast(Function, numba.njit(function, **_OPTIONS))
