"""A copy of a rank's state in memory, laid out as the file that it becomes.

The copy is the serialisation: no bytes object is made of anything, and the process that writes the file maps the same
memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from threading import Thread
from typing import Final

import torch

from pipeline.checkpoints.pieces import Piece, file_layout

_MADV_POPULATE_WRITE: Final = 23
_POPULATED_BYTES: Final = 32 << 20


class Snapshot:
    """Memory that is kept between snapshots and grows if it must."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("pretrain-snapshot", os.MFD_CLOEXEC)
        self.num_bytes = 0
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._is_pinned = False

    def take(self, pieces: Sequence[Piece]) -> None:
        """Copy the pieces; when this returns, their tensors may change.

        Raises:
            OSError: there is not enough memory.
        """
        layout = file_layout(pieces)
        on_device = any(piece.values.is_cuda for piece in pieces)
        if layout.num_bytes > len(self._bytes):
            self._grow(layout.num_bytes, pin=on_device)
        header = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
        self._bytes[: len(header)].copy_(header)
        for piece, start in zip(pieces, layout.starts, strict=True):
            # As bytes: where a piece begins in a file need not suit its dtype.
            values = piece.values.detach().reshape(-1).view(torch.uint8)
            self._bytes[start : start + len(values)].copy_(values, non_blocking=True)
        if on_device:
            torch.cuda.synchronize()
        self.num_bytes = layout.num_bytes

    def reserve(self, pieces: Sequence[Piece]) -> None:
        """Get the memory for a snapshot of these pieces, beside the loop: the first snapshot then waits for no pages.

        Raises:
            OSError: there is not enough memory.
        """
        on_device = any(piece.values.is_cuda for piece in pieces)
        self._grow(file_layout(pieces).num_bytes, pin=on_device)
        if not self._is_pinned:
            Thread(target=_populate, args=(self._bytes,), name="snapshot-pages", daemon=True).start()

    def close(self) -> None:
        """Give the memory back."""
        self._release()
        os.close(self.descriptor)

    def _grow(self, num_bytes: int, pin: bool) -> None:
        self._release()
        os.ftruncate(self.descriptor, num_bytes)
        self._bytes = torch.frombuffer(mmap.mmap(self.descriptor, num_bytes), dtype=torch.uint8)
        if pin:  # a device copies to pinned memory several times as fast; if the system refuses, it is only slower
            self._is_pinned = int(torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), num_bytes, 0)) == 0

    def _release(self) -> None:
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
            self._is_pinned = False
        self._bytes = torch.empty(0, dtype=torch.uint8)  # the mapping ends with the last tensor that looks at it


def _populate(memory: torch.Tensor) -> None:
    """Have the system give all pages now (Linux 5.14 and later; elsewhere whoever writes first waits for them)."""
    madvise = ctypes.CDLL(None).madvise  # without the interpreter's lock, which Python's own holds
    for start in range(0, len(memory), _POPULATED_BYTES):
        length = min(_POPULATED_BYTES, len(memory) - start)
        address = ctypes.c_void_p(memory.data_ptr() + start)
        if madvise(address, ctypes.c_size_t(length), _MADV_POPULATE_WRITE) != 0:
            return
