"""Holding every byte of a corpus against its manifest: `pretrain corpus verify`.

Letters: D documents of a block or shard, T tokens of a block.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_of_file
from pipeline.shards.files import LocalFiles
from pipeline.shards.layout import (
    BLOCK_ENTRY,
    NPY_HEADER_BYTES,
    index_bytes,
    npy_bytes,
    shard_path,
    token_dtype,
)
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest
from pipeline.shards.reader import WAY_OUT, check_sha256, read_index


@dataclass(frozen=True)
class CorpusFacts:
    """What was verified."""

    fingerprint: str
    """Of the corpus, as in the manifest."""

    shards: dict[str, int]
    """Shards of every split."""

    documents: dict[str, int]
    """Documents of every split."""

    tokens: dict[str, int]
    """Tokens of every split."""

    bytes: int
    """Size of all tars."""


def verify_corpus(directory: Path, progress: Callable[[int, int], None] | None = None) -> CorpusFacts:
    """Check manifest, tokenizer and every shard: size, sha256, structure, counts, index, token ids, no stray shard.

    Args:
        progress: called with (shards done, shards in all) after every shard.

    Raises:
        UserError: the first difference found, with the shard's path and both values.
    """
    files = LocalFiles(directory)
    manifest = read_manifest(files)
    check_tokenizer(files, manifest)
    for split, table in manifest.splits.items():
        _check_no_stray_shard(directory, split, len(table))
    shards = [(split, number) for split, table in manifest.splits.items() for number in range(len(table))]
    for done, (split, number) in enumerate(shards):
        verify_shard(directory, split, number, manifest)
        if progress is not None:
            progress(done + 1, len(shards))
    return CorpusFacts(
        fingerprint=manifest.fingerprint,
        shards={split: len(table) for split, table in manifest.splits.items()},
        documents={split: int(table.documents.sum()) for split, table in manifest.splits.items()},
        tokens={split: int(table.tokens.sum()) for split, table in manifest.splits.items()},
        bytes=sum(int(table.bytes.sum()) for table in manifest.splits.values()),
    )


def _check_no_stray_shard(directory: Path, split: str, num_shards: int) -> None:
    known = {shard_path(directory, split, number) for number in range(num_shards)}
    stray = sorted(set((directory / split).glob("*.tar")) - known)
    if stray:
        raise UserError(
            f"{stray[0]} is not in the manifest, which lists {num_shards} shards of {split!r} "
            f"({len(stray)} such files). Remove them, or build the corpus again."
        )


def verify_shard(directory: Path, split: str, number: int, manifest: Manifest) -> None:
    """Check one shard; see :func:`verify_corpus`."""
    path = shard_path(directory, split, number)
    table = manifest.splits[split]
    if not path.is_file():
        raise UserError(f"The shard {path} does not exist. {WAY_OUT}")
    num_bytes = path.stat().st_size
    if num_bytes != table.bytes[number]:
        raise UserError(f"{path} has {num_bytes} bytes; the manifest says {table.bytes[number]}. {WAY_OUT}")
    check_sha256(str(path), sha256_of_file(path), table.sha256_of(number))
    rebuilt = rebuild_index(path, manifest.vocab_size)
    read_index(LocalFiles(directory), split, number, manifest)
    if path.with_suffix(".idx").read_bytes() != rebuilt:
        raise UserError(
            f"{path.with_suffix('.idx')} is not the index of {path}: a document's length or place differs. {WAY_OUT}"
        )


def rebuild_index(path: Path, vocab_size: int) -> bytes:
    """The index of a tar, from the tar alone, checking its records on the way.

    Raises:
        UserError: not a tar, truncated, or a record whose members do not fit together.
    """
    lengths: list[NDArray[np.int64]] = []
    blocks: list[tuple[int, int]] = []
    num_documents = 0
    dtype = token_dtype(vocab_size)
    try:
        with tarfile.open(path, "r:") as tar:
            records: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in tar:
                name, _, ending = member.name.partition(".")
                records.setdefault(name, {})[ending] = member
            for block, (name, members) in enumerate(records.items()):
                if name != f"{block:06d}" or not {"tokens.npy", "documents.npy", "ids.json"} <= set(members):
                    raise UserError(
                        f"{path}: record {name!r} is not block {block:06d} with tokens, documents and ids. {WAY_OUT}"
                    )
                contents = {ending: _content(tar, member) for ending, member in members.items()}
                lengths.append(_check_block(path, block, contents, dtype, vocab_size))
                first_byte = members["tokens.npy"].offset_data + NPY_HEADER_BYTES
                blocks.append((num_documents, first_byte // dtype.itemsize))
                num_documents += len(lengths[-1])
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a readable tar ({error}): truncated or damaged. {WAY_OUT}") from None
    joined = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    return index_bytes(dtype.itemsize, joined.astype(np.uint32), np.array(blocks, BLOCK_ENTRY))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(content)} of {member.size} bytes")
    return content


def _check_block(
    path: Path, block: int, contents: dict[str, bytes], dtype: np.dtype, vocab_size: int
) -> NDArray[np.int64]:
    """Lengths of a block's documents, int64 (D,), after checking that its members fit together."""

    def damaged(what: str) -> UserError:
        return UserError(f"{path}: block {block:06d}: {what}. {WAY_OUT}")

    def array(ending: str, kind: np.dtype) -> NDArray:
        content = contents[ending]
        if (len(content) - NPY_HEADER_BYTES) % kind.itemsize or len(content) < NPY_HEADER_BYTES:
            raise damaged(f"{ending} has {len(content)} bytes")
        values = np.frombuffer(content, kind, offset=NPY_HEADER_BYTES)
        if content[:NPY_HEADER_BYTES] != npy_bytes(values)[:NPY_HEADER_BYTES]:
            raise damaged(f"{ending} is not a 1-D array of {kind.name}")
        return values

    tokens = array("tokens.npy", dtype)
    offsets = array("documents.npy", np.dtype("<u4")).astype(np.int64)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) <= 0).any():
        raise damaged(f"document offsets do not cover the {len(tokens)} tokens in order")
    if int(tokens.max()) >= vocab_size:
        raise damaged(f"token id {int(tokens.max())} is outside the vocabulary of {vocab_size}")
    try:
        ids = json.loads(contents["ids.json"])
    except ValueError as error:
        raise damaged(f"ids.json is not JSON ({error})") from None
    if not isinstance(ids, list) or len(ids) != len(offsets) - 1:
        raise damaged(f"ids.json does not list {len(offsets) - 1} document ids")
    if "sentences.npy" in contents:
        sentences = array("sentences.npy", np.dtype("<u4")).astype(np.int64)
        if (np.diff(sentences) <= 0).any() or not np.isin(offsets, sentences).all() or sentences[-1] != len(tokens):
            raise damaged("sentence offsets do not include every document's boundary in order")
    return np.diff(offsets)
