"""Memory that is freed and asked for again is not given back to the kernel in between."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from pipeline.base.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    print(keep_freed_memory())

def fill():
    arrays = [np.ones(size, np.uint8) for size in (3 << 20, 9 << 20, 1 << 20, 5 << 20)]
    return sum(int(array[0]) for array in arrays)

for _ in range(5):
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, mode]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_pages_are_not_cleared_again_for_every_array() -> None:
    (without,) = run("leave")
    taken, kept = run("keep")
    if taken == "False":
        pytest.skip("the C library has no mallopt")
    assert int(kept) < 100
    assert int(without) > 10 * max(int(kept), 10)
