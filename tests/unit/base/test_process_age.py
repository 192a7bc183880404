"""When a process was started."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from pipeline.base.process_age import process_start

PROGRAM = """
import time
began = time.time()
time.sleep(0.3)
from pipeline.base.process_age import process_start
print(began, process_start())
"""


def test_the_start_lies_before_the_first_line_whenever_one_asks() -> None:
    before = time.time()
    began, start = map(float, subprocess.check_output([sys.executable, "-c", PROGRAM]).split())
    assert before - 0.05 < start <= began + 0.05, "the system counts in hundredths of a second"


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    before = time.time()
    assert before <= process_start(tmp_path / "none") <= time.time()
