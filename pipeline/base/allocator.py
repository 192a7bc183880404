"""The C allocator of this process."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Parameters of glibc's ``mallopt``, see malloc.h."""

KEPT_BYTES: Final = 256 << 20
_LARGEST_FROM_HEAP_BYTES: Final = 32 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep up to :data:`KEPT_BYTES` of freed memory and take arrays of megabytes from it.

    Every batch is made of arrays of megabytes that live for one step. As shipped, glibc gives such memory back to the
    kernel, which clears each page again at its next use: that can take as long as filling it with data.

    Returns:
        whether the C library took the settings; others than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = mallopt(_TRIM_THRESHOLD, KEPT_BYTES), mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP_BYTES)
    return taken == (1, 1)
