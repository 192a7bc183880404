"""Runs a script of this folder in a new, isolated Python: no working directory, no ``PYTHONPATH``, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class FreshProcessError(RuntimeError):
    """The script failed; the message is the last line of its standard error."""


def run_fresh(script_name: str, request: dict[str, Any]) -> Any:
    """Run ``python -I <script> request.json response.json`` and return the response.

    Raises:
        FreshProcessError: the script ended with an error.
    """
    script = Path(__file__).with_name(script_name)
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
    # A local folder must be enough, and both sides of a comparison run on the same kind of device.
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryDirectory(prefix="pretrain-fresh-") as folder:
        request_path, response_path = Path(folder, "request.json"), Path(folder, "response.json")
        request_path.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-I", str(script), str(request_path), str(response_path)],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise FreshProcessError(lines[-1] if lines else f"exit status {done.returncode}")
        return json.loads(response_path.read_text())
