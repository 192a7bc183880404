"""Comparing what came from a server with the corpus on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.shards.cache import CacheSettings
from pipeline.shards.files import CorpusFiles
from tests.corpora import Corpus, random_lengths, write_corpus


def small_corpus(directory: Path, num_shards: int = 5, num_documents: int = 40) -> Corpus:
    return write_corpus(directory, random_lengths(1, num_shards, num_documents))


def quick_settings(directory: Path, **changed: Any) -> CacheSettings:
    """Settings of a cache whose patience is short enough for tests."""
    return CacheSettings(**{"directory": directory, "stall_seconds": 0.3, "retry_seconds": 20.0} | changed)


def wanted_tars(corpus: Corpus, split: str = "train") -> list[tuple[str, int, str]]:
    """Name, bytes and sha256 of every tar of a split."""
    table = corpus.manifest.splits[split]
    return [
        (f"{split}/{number:05d}.tar", int(table.bytes[number]), table.sha256_of(number)) for number in range(len(table))
    ]


def wanted_indexes(corpus: Corpus, split: str = "train") -> list[tuple[str, str]]:
    """Name and sha256 of every index of a split."""
    paths = sorted((corpus.directory / split).glob("*.idx"))
    return [(f"{split}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def check_equal(files: CorpusFiles, corpus: Corpus, splits: Sequence[str] = ("train", "validation")) -> None:
    """Every file read through ``files`` is that on disk."""
    assert files.read("manifest.json") == (corpus.directory / "manifest.json").read_bytes()
    for split in splits:
        for name, sha256 in wanted_indexes(corpus, split):
            assert files.read(name, sha256) == (corpus.directory / name).read_bytes()
        for name, num_bytes, sha256 in wanted_tars(corpus, split):
            with files.open(name, num_bytes, sha256) as file:
                assert file.read() == (corpus.directory / name).read_bytes()


def cached_bytes(directory: Path) -> int:
    """Bytes of all files under a cache at one moment: looked at twice, since files may come and go during a look."""
    before, now = None, _sizes(directory)
    while before != now:
        before, now = now, _sizes(directory)
    return sum(now.values())


def _sizes(directory: Path) -> dict[Path, int]:
    sizes = {}
    for path in directory.rglob("*"):
        try:
            if path.is_file():
                sizes[path] = path.lstat().st_size
        except FileNotFoundError:
            continue
    return sizes
