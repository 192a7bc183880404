"""Where a run's corpora are, as its config says."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.config.run import CacheConfig
from pipeline.shards.cache import CacheSettings
from pipeline.shards.files import CorpusFiles, corpus_files


def files_at(location: str | Path, cache: CacheConfig) -> CorpusFiles:
    """The files of a corpus: a directory, or a URL through the node's cache.

    Raises:
        UserError: a URL that cannot be read, or a cache that cannot be written or whose name has an unset variable.
    """
    directory = os.path.expandvars(cache.directory)
    if "://" in str(location) and "$" in directory:
        raise UserError(
            f"data.cache.directory: {cache.directory!r} names a variable that is not set on this node. Set it, or give "
            "the directory itself."
        )
    return corpus_files(
        location,
        CacheSettings(
            directory=Path(directory),
            max_bytes=int(cache.gigabytes * 10**9),
            download_threads=cache.download_threads,
            stall_seconds=cache.stall_seconds,
            retry_seconds=cache.retry_seconds,
            storage_options=cache.storage_options,
        ),
    )
