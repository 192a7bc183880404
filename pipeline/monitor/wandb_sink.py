"""Metrics to Weights & Biases, under one run id for the life of a run directory.

The id is drawn when the run first starts and stored in ``wandb_id``; every restart, requeue or move to another
machine goes on with it (``resume="allow"``). A start first sends what is in ``metrics.jsonl`` and not with wandb, so
that a kill leaves no gap. wandb never stops a training run: the first failure is told once, with its reason, and the
run goes on without it. All metrics are in ``metrics.jsonl`` in any case.
"""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.base.files import write_bytes_atomically
from pipeline.base.logs import get_logger
from pipeline.monitor.json_lines import number, plain_value
from pipeline.monitor.sinks import read_metrics
from pipeline.monitor.wandb_files import last_offline_step, set_empty_files_aside

WandbMode = Literal["auto", "online", "offline", "off"]
ResolvedMode = Literal["online", "offline", "off"]

ID_NAME = "wandb_id"
_START_SECONDS = 60.0
_FINISH_SECONDS = 120.0
_FLUSH_SECONDS = 1.0
_MODES_OF_WANDB: dict[str, ResolvedMode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


def find_api_key(environ: Mapping[str, str] | None = None) -> str | None:
    """The wandb API key of this user: ``WANDB_API_KEY``, else the netrc entry of wandb's host; None without one.

    ``NETRC`` names the file (default ``~/.netrc`` or ``~/_netrc``), ``WANDB_BASE_URL`` the server.
    """
    env = os.environ if environ is None else environ
    if env.get("WANDB_API_KEY", "").strip():
        return env["WANDB_API_KEY"].strip()
    host = urlsplit(env.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    home = Path(env.get("HOME", "~")).expanduser()
    paths = [Path(env["NETRC"]).expanduser()] if env.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for path in paths:
        try:
            login = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue  # An absent or foreign netrc only means that there is no key in it.
        if login and login[2]:
            return login[2]
    return None


def resolve_mode(mode: WandbMode, environ: Mapping[str, str] | None = None) -> ResolvedMode:
    """What a configured mode means here.

    ``auto`` follows ``WANDB_MODE`` if that is set, else is ``online`` where an API key is found and ``offline``
    elsewhere. ``online``, ``offline`` and ``off`` are themselves.
    """
    env = os.environ if environ is None else environ
    if mode != "auto":
        return mode
    asked = _MODES_OF_WANDB.get(env.get("WANDB_MODE", "").lower())
    if asked:
        return asked
    return "online" if find_api_key(env) or env.get("WANDB_IDENTITY_TOKEN_FILE") else "offline"


def run_id(run_directory: Path) -> str:
    """The wandb run id of a run directory: read from ``wandb_id``, or drawn and stored there the first time."""
    path = run_directory / ID_NAME
    stored = path.read_text().strip() if path.exists() else ""
    if not stored:
        stored = secrets.token_hex(8)
        write_bytes_atomically(path, f"{stored}\n".encode())
    return stored


class WandbSink:
    """Sends the numbers of each metric line to wandb, with our step as wandb's step."""

    def __init__(self, run_directory: Path, mode: WandbMode, project: str, run_name: str | None = None) -> None:
        self.run_directory = run_directory
        self.mode: ResolvedMode = resolve_mode(mode)
        self.project = project
        self.run_name = run_name or run_directory.name
        self._run: Any = None
        self._next_step = 0
        self._warned = False

    def start(self, run_facts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if self.mode == "off":
            return
        settings = {**plain_value(config), "run_facts": plain_value(run_facts)}
        if self.mode == "online" and not self._init("online", settings):
            get_logger("monitor").warning("wandb goes on offline: upload later with `wandb sync`.")
            self._init("offline", settings)
        elif self.mode == "offline":
            self._init("offline", settings)

    def _init(self, mode: Literal["online", "offline"], settings: dict[str, Any]) -> bool:
        """Start wandb; False, after one warning, if it does not start."""
        if mode == "online" and not find_api_key() and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            # wandb would ask for one on the terminal, and the run would wait for an answer.
            self._warn("no API key: set WANDB_API_KEY or run `wandb login`")
            return False
        try:
            import wandb

            options: dict[str, Any] = {"init_timeout": _START_SECONDS, "silent": True, "console": "off"}
            if "finish_timeout" in wandb.Settings.model_fields:
                options["finish_timeout"] = _FINISH_SECONDS  # Without it a dead network holds the run's end for ever.
            if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
                options["x_transaction_log_flush_interval"] = _FLUSH_SECONDS  # A kill loses what is not in the file.
            stored_id = run_id(self.run_directory)
            set_empty_files_aside(self.run_directory, stored_id)
            self._run = wandb.init(
                project=self.project,
                id=stored_id,
                name=self.run_name,
                dir=str(self.run_directory),
                config=settings,
                mode=mode,
                resume="allow",
                settings=wandb.Settings(**options),
            )
            # Steps that wandb has already are the same numbers, for resume is exact; it would refuse or repeat them.
            online = mode == "online"
            self._next_step = int(self._run.step) if online else last_offline_step(self.run_directory, stored_id) + 1
        except Exception as error:  # wandb raises many types, and none of them may stop a run.
            self._warn(f"could not start {mode}: {type(error).__name__}: {error}")
            return False
        place = self._run.url if mode == "online" else f"offline, in {self.run_directory / 'wandb'}"
        get_logger("monitor").info("wandb run %s: %s", self._run.id, place)
        for line in read_metrics(self.run_directory):
            self.log(line)  # what a kill kept from wandb, or a start without it; the rest it has
        return True

    def log(self, metrics: Mapping[str, Any]) -> None:
        step = int(metrics["step"])
        if self._run is None or step < self._next_step:
            return
        record = plain_value(metrics)
        numbers = {name: number(value) for name, value in record.items() if name != "step"}
        try:
            self._run.log({name: value for name, value in numbers.items() if value is not None}, step=step)
            self._next_step = step
        except Exception as error:  # As above: told once, then the run goes on without wandb.
            self._warn(f"stopped at step {step}: {type(error).__name__}: {error}")
            self._run = None

    def event(self, name: str, **facts: Any) -> None:
        """``stopped`` (by a signal) marks the wandb run as preempting: it waits for its restart, it has not crashed."""
        if self._run is None or name != "stopped":
            return
        try:
            self._run.mark_preempting()
        except Exception as error:  # As above.
            self._warn(f"could not mark the run as preempting: {type(error).__name__}: {error}")

    def close(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:  # As above.
            self._warn(f"did not finish: {type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        """One warning for the life of the sink; an API key in the reason is blotted out."""
        if self._warned:
            return
        self._warned = True
        key = find_api_key()
        text = reason.replace(key, "[API key]") if key else reason
        get_logger("monitor").warning("wandb: %s. Training goes on; metrics are in metrics.jsonl.", text.rstrip("."))
