"""Arrays between two stages are what NumPy reads, and a full disk is told as one."""

from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.text_store import DOCUMENT, save_array


@pytest.mark.parametrize(
    "array", [np.arange(1000), np.zeros(0, DOCUMENT), np.ones(3, DOCUMENT), np.arange(10, dtype=np.uint32)[::2]]
)
def test_numpy_reads_what_was_saved(array: np.ndarray, tmp_path: Path) -> None:
    save_array(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_an_array_that_does_not_fit_raises_an_error_with_its_number(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_array(tmp_path / "a.npy", np.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
