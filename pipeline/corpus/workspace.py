"""`OUTPUT/.build`: the work of an unfinished build, and the rules by which a build may go on there.

Removed when the build is complete. Nothing in it is ever mixed between two configs or two states of the input.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.base.errors import UserError
from pipeline.base.files import read_json, write_json_atomically
from pipeline.config.corpus import CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.corpus.languages import MIXTURE_NAME, folders_of
from pipeline.corpus.units import InputFile
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import MANIFEST_NAME, Manifest, read_manifest

BUILD_VERSION = 1
"""Raised when the same config would give other bytes."""

_ADDED_LATER: Final = {
    "source": ("max_symbols", "uppercase", "language"),
    "tokenizer": ("min_count", "kmer", "kmer_overlap", "kmer_letters", "num_integers", "language_exponent"),
    "shards": ("by_language",),
}
"""Settings that came after the first corpora and whose defaults change none of them."""

WORK_NAME = ".build"
LOG_NAME = "build_log.jsonl"
_PUBLISHED = ("train", "validation", "tokenizer")


@dataclass(frozen=True)
class Workspace:
    """Names of everything a build keeps until it is complete."""

    output: Path
    """The corpus directory."""

    @property
    def root(self) -> Path:
        return self.output / WORK_NAME

    def stage(self, name: str) -> Path:
        """Completion marks, logs and statistics of a stage."""
        return self.root / "stages" / name

    def counters(self, name: str) -> Path:
        """Progress counters of a stage."""
        return self.root / "stages" / name / "counters"

    @property
    def tasks(self) -> Path:
        return self.root / "tasks"

    @property
    def texts(self) -> Path:
        return self.root / "texts"

    @property
    def duplicates(self) -> Path:
        return self.root / "duplicates"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def tokenizer_facts(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def encoded(self) -> Path:
        return self.root / "encoded"

    @property
    def deal(self) -> Path:
        return self.root / "deal"

    @property
    def shard_facts(self) -> Path:
        return self.root / "shard_facts"


def config_fingerprint(config: CorpusConfig) -> str:
    """sha256 of all settings that the bytes of the corpus depend on."""
    value = asdict(config)
    del value["cleaning"]["max_bad_share"]  # stops a build or does not; a build may go on with another one
    for source in value["sources"]:
        _forget_defaults(source, SourceConfig(), _ADDED_LATER["source"])
    _forget_defaults(value["tokenizer"], TokenizerConfig(), _ADDED_LATER["tokenizer"])
    _forget_defaults(value["shards"], ShardConfig(), _ADDED_LATER["shards"])
    return hashlib.sha256(json.dumps([BUILD_VERSION, value], sort_keys=True).encode()).hexdigest()


def _forget_defaults(section: dict[str, Any], defaults: Any, names: Sequence[str]) -> None:
    """Take settings out that stand at their default, so that a corpus built before they existed is still this one."""
    for name in names:
        if section[name] == getattr(defaults, name):
            del section[name]


def complete_corpus(fingerprint: str, output: Path) -> Manifest | None:
    """The manifest, if ``output`` holds the finished corpus of this very config; None if the build has to run.

    Args:
        fingerprint: of the config, as the manifest's ``config_fingerprint``.

    Raises:
        UserError: ``output`` is a file, holds another corpus, an unfinished build of another config, or other files.
    """
    way_out = "Choose another --output, or delete that directory first."
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; a corpus is a directory. Choose another --output.")
    if (output / MANIFEST_NAME).exists():
        manifest = read_manifest(LocalFiles(output))
        built = str(manifest.extra.get("config_fingerprint"))
        if built != fingerprint:
            raise UserError(
                f"{output} holds a corpus built with another config (fingerprint {built[:12]}, this one "
                f"{fingerprint[:12]}). {way_out}"
            )
        return manifest
    state = output / WORK_NAME / "state.json"
    if state.exists():
        built = str(read_json(state, "state of the unfinished build").get("config_fingerprint"))
        if built != fingerprint:
            raise UserError(
                f"{output} holds an unfinished build of another config (fingerprint {built[:12]}, this one "
                f"{fingerprint[:12]}). Go back to that config to finish it. {way_out}"
            )
        return None
    # A build writes its state before anything else, so without one `train/` is somebody's data, not a build's.
    foreign = sorted(set(os.listdir(output)) - {WORK_NAME, LOG_NAME}) if output.exists() else []
    if foreign:
        raise UserError(f"{output} is not empty and holds no corpus (found {', '.join(foreign[:5])}). {way_out}")
    return None


def complete_corpora(config: CorpusConfig, output: Path) -> dict[str, Manifest] | None:
    """The manifests by folder below ``output`` ("": itself), if it holds all that this very config makes; else None.

    Raises:
        UserError: as :func:`complete_corpus`.
    """
    fingerprint = config_fingerprint(config)
    if not (config.shards.by_language and (output / MIXTURE_NAME).exists()):
        manifest = complete_corpus(fingerprint, output)
        return None if manifest is None else {"": manifest}
    manifests: dict[str, Manifest] = {}
    for folder in folders_of(config):
        if not (output / folder / MANIFEST_NAME).exists():
            raise UserError(
                f"{output} holds corpora by language, but none in {output / folder}: they were built with another "
                "config, or the folder was removed. Choose another --output, or delete that directory first."
            )
        found = complete_corpus(fingerprint, output / folder)
        assert found is not None
        manifests[folder] = found
    return manifests


@contextmanager
def locked(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace for this process; the lock ends with the process.

    Raises:
        UserError: another build runs there.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    with open(workspace.root / "lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another `pretrain corpus build` is writing {workspace.output}: wait for it, or choose another "
                "--output."
            ) from None
        yield


def starts_anew(workspace: Workspace, config: CorpusConfig, files: Sequence[InputFile]) -> bool:
    """Record config and input, and throw away work done on other input.

    Returns:
        True if an unfinished build was thrown away because a file of its input changed, came or went.
    """
    listing = [[file.path, file.bytes, file.modified] for file in files]
    state = {
        "config_fingerprint": config_fingerprint(config),
        "input_fingerprint": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }
    path = workspace.root / "state.json"
    old = read_json(path, "state of the unfinished build") if path.exists() else None
    if old == state:
        return False
    # The state goes after the shards: while they are there, it says whose they are.
    for name in _published(config):
        shutil.rmtree(workspace.output / name, ignore_errors=True)
    for child in sorted(workspace.root.iterdir()):
        if child.name not in ("lock", "datasets"):
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    write_json_atomically(path, state)
    return old is not None


def remove_leftovers(workspace: Workspace, config: CorpusConfig) -> None:
    """Remove the half-written files of killed attempts from the corpus directory, or that of every language."""
    for folder in ("", *folders_of(config)):
        for directory in (workspace.output / folder / name for name in ("", *_PUBLISHED)):
            for path in directory.glob(".*.tmp"):
                path.unlink()


def _published(config: CorpusConfig) -> list[str]:
    """Folders that a build makes in its output."""
    return list(folders_of(config)) if config.shards.by_language else list(_PUBLISHED)
