"""When a process was started, and whether it lives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.base.processes import process_start, start_ticks

PROGRAM = """
import time
began = time.time()
time.sleep(0.3)
from pipeline.base.processes import process_start
print(began, process_start())
"""


def test_the_start_lies_before_the_first_line_whenever_one_asks() -> None:
    before = time.time()
    began, start = map(float, subprocess.check_output([sys.executable, "-c", PROGRAM]).split())
    assert before - 0.05 < start <= began + 0.05, "the system counts in hundredths of a second"


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    before = time.time()
    assert before <= process_start(tmp_path / "none") <= time.time()


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = start_ticks(process.pid)
    assert ticks == start_ticks(process.pid)
    assert ticks is not None
    assert ticks >= (start_ticks(os.getpid()) or 0)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(process.pid) is None, "it has ended, though nobody has waited for it"
    process.wait()
    assert start_ticks(process.pid) is None


def test_without_a_process_table(tmp_path: Path) -> None:
    assert start_ticks(os.getpid(), tmp_path / "none") == 0
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert start_ticks(process.pid, tmp_path / "none") is None
