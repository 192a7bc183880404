"""Where a run's corpora are, as its config says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config.run import CacheConfig
from pipeline.shards.cache import CacheSettings
from pipeline.shards.files import CorpusFiles, corpus_files


def files_at(location: str | Path, cache: CacheConfig) -> CorpusFiles:
    """The files of a corpus: a directory, or a URL through the node's cache.

    Variables of the node are put into the cache's directory and options, so that the config, which is written down in
    several places, holds no secret.

    Raises:
        UserError: a URL that cannot be read, a cache that cannot be written, or a variable that is not set.
    """
    if "://" not in str(location):
        return corpus_files(location)
    return corpus_files(
        location,
        CacheSettings(
            directory=Path(_filled_in(cache.directory, "data.cache.directory")),
            max_bytes=int(cache.gigabytes * 10**9),
            download_threads=cache.download_threads,
            stall_seconds=cache.stall_seconds,
            retry_seconds=cache.retry_seconds,
            storage_options=_filled_in(cache.storage_options, "data.cache.storage_options"),
        ),
    )


def _filled_in(value: Any, where: str) -> Any:
    """A value of the config with the variables of this node."""
    if isinstance(value, Mapping):
        return {name: _filled_in(one, f"{where}.{name}") for name, one in value.items()}
    if not isinstance(value, str):
        return value
    if any(name not in os.environ for name in re.findall(r"\$\{?(\w+)", value)):
        raise UserError(
            f"{where}: {value!r} names a variable that is not set on this node. Set it, or give the value itself."
        )
    return os.path.expandvars(value)
