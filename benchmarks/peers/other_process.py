"""A peer in another environment, asked over a pipe, so that its turns can lie between the others'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

ENVIRONMENT: Final = Path(".venv-benchmarks-mosaicml")


class OtherProcess:
    """The process of `benchmarks/peers/mosaicml.py`. It sleeps between its turns.

    Raises:
        RuntimeError: it could not be started; the text says why.
    """

    name: Final = "mosaicml streaming"

    def __init__(self, rows_path: Path, directory: Path, tokenizer: Path | None, vocab_size: int) -> None:
        python = ENVIRONMENT / "bin" / "python"
        if not python.exists():
            raise RuntimeError(f"{ENVIRONMENT} does not exist: run `make benchmarks-setup`")
        arguments = [str(rows_path), str(directory), str(tokenizer or ""), str(vocab_size)]
        self._log = directory.with_suffix(".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.peers.mosaicml", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.versions: dict[str, str] = self._read()["ready"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended: {self._log.read_text(encoding='utf-8').strip()[-400:]}")
        return json.loads(line)

    def seconds_a_batch(self, collate: str, num_batches: int) -> float:
        """As :func:`benchmarks.peers.measure.seconds_a_batch`, with the ``documented`` or ``tuned`` collate."""
        return float(self.ask(ask="time", collate=collate, batches=num_batches)["seconds"])

    def all_rows(self, path: Path) -> np.ndarray:
        """Every row of one epoch, by way of a file."""
        self.ask(ask="rows", path=str(path))
        return np.load(path)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            print(f"{self.name}: had to be ended", file=sys.stderr)
