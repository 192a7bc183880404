"""Holding every byte of a corpus against its manifest: `pretrain corpus verify`.

Letters: D documents of a block or shard, T tokens of a block.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from pipeline.base.errors import UserError
from pipeline.base.files import sha256_of_file
from pipeline.shards.files import LocalFiles, reading
from pipeline.shards.index import WAY_OUT, read_index
from pipeline.shards.layout import (
    BLOCK_ENTRY,
    NPY_HEADER_BYTES,
    TAR_END,
    index_bytes,
    npy_bytes,
    pack_bits,
    padded,
    shard_name,
    token_dtype,
    unpack_bits,
)
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest


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

    Shards are checked by as many threads as there are cores.

    Args:
        progress: called with (shards done, shards in all) after every shard.

    Raises:
        UserError: the first difference in the order of splits and shards, with the shard's path and both values.
    """
    files = LocalFiles(directory)
    manifest = read_manifest(files)
    check_tokenizer(files, manifest)
    for split, table in manifest.splits.items():
        _check_no_stray_shard(files, split, len(table))
    shards = [(split, number) for split, table in manifest.splits.items() for number in range(len(table))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        verified = [threads.submit(verify_shard, files, split, number, manifest) for split, number in shards]
        try:
            for done, shard in enumerate(verified):
                shard.result()
                if progress is not None:
                    progress(done + 1, len(shards))
        finally:
            threads.shutdown(cancel_futures=True)
    return CorpusFacts(
        fingerprint=manifest.fingerprint,
        shards={split: len(table) for split, table in manifest.splits.items()},
        documents={split: int(table.documents.sum()) for split, table in manifest.splits.items()},
        tokens={split: int(table.tokens.sum()) for split, table in manifest.splits.items()},
        bytes=sum(int(table.bytes.sum()) for table in manifest.splits.values()),
    )


def _check_no_stray_shard(files: LocalFiles, split: str, num_shards: int) -> None:
    known = {f"{shard_name(split, number)}.tar" for number in range(num_shards)}
    stray = sorted(path for path in files.path(split).glob("*.tar") if f"{split}/{path.name}" not in known)
    if stray:
        raise UserError(
            f"{stray[0]} is not in the manifest, which lists {num_shards} shards of {split!r} "
            f"({len(stray)} such files). Remove them, or build the corpus again."
        )


def verify_shard(files: LocalFiles, split: str, number: int, manifest: Manifest) -> None:
    """Check one shard; see :func:`verify_corpus`."""
    table = manifest.splits[split]
    path = files.path(f"{shard_name(split, number)}.tar")
    if not path.is_file():
        raise UserError(f"The shard {path} does not exist. {WAY_OUT}")
    num_bytes = path.stat().st_size
    if num_bytes != table.bytes[number]:
        raise UserError(f"{path} has {num_bytes} bytes; the manifest says {table.bytes[number]}. {WAY_OUT}")
    with reading(str(path)):
        found, expected = sha256_of_file(path), table.sha256_of(number)
    if found != expected:
        raise UserError(f"{path} has sha256 {found}; the manifest says {expected}: its bytes have changed. {WAY_OUT}")
    rebuilt = rebuild_index(path, manifest.vocab_size, sentences=manifest.has_sentences, words=manifest.has_words)
    read_index(files, split, number, manifest)
    if path.with_suffix(".idx").read_bytes() != rebuilt:
        raise UserError(
            f"{path.with_suffix('.idx')} is not the index of {path}: a document's length, its place or a block's "
            f"checksum differs. {WAY_OUT}"
        )


def rebuild_index(path: Path, vocab_size: int, *, sentences: bool, words: bool) -> bytes:
    """The index of a tar, from the tar alone, checking its records on the way.

    Args:
        sentences: whether its blocks must have sentence offsets; if not, they must have none.
        words: likewise, word starts.

    Raises:
        UserError: not a tar, truncated, or a record whose members do not fit together.
    """
    lengths: list[NDArray[np.int64]] = []
    blocks: list[tuple[int, int, int]] = []
    num_documents = 0
    dtype = token_dtype(vocab_size)
    endings = ["tokens.npy", "documents.npy", *["sentences.npy"] * sentences, *["words.npy"] * words, "ids.json"]
    with open(path, "rb") as file:
        records = _records(path, file)
        begins = [next(iter(members.values())).offset for members in records.values()]
        for block, ((name, members), (begin, end)) in enumerate(
            zip(records.items(), pairwise([*begins, path.stat().st_size - len(TAR_END)]), strict=True)
        ):
            if name != f"{block:06d}" or list(members) != endings:
                raise UserError(
                    f"{path}: record {name!r} with {', '.join(members)} is not block {block:06d} with "
                    f"{', '.join(endings)}. {WAY_OUT}"
                )
            file.seek(begin)
            record = file.read(end - begin)
            last = members[endings[-1]]
            if last.offset_data + padded(last.size) != end:
                raise UserError(f"{path}: block {block:06d} ends before byte {end}. {WAY_OUT}")
            contents = {
                ending: record[member.offset_data - begin :][: member.size] for ending, member in members.items()
            }
            lengths.append(_check_block(path, block, contents, dtype, vocab_size))
            first_byte = members["tokens.npy"].offset_data + NPY_HEADER_BYTES
            blocks.append((num_documents, first_byte // dtype.itemsize, xxh3_64_intdigest(record)))
            num_documents += len(lengths[-1])
    joined = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    return index_bytes(dtype.itemsize, joined.astype(np.uint32), np.array(blocks, BLOCK_ENTRY))


def _records(path: Path, file: BinaryIO) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Members of a tar by record and ending, in the order of the file."""
    records: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name, _, ending = member.name.partition(".")
                records.setdefault(name, {})[ending] = member
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a readable tar ({error}): truncated or damaged. {WAY_OUT}") from None
    return records


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
    if "words.npy" in contents:
        packed = array("words.npy", np.dtype("u1"))
        bits = unpack_bits(packed, 0, len(tokens))
        if not np.array_equal(pack_bits(bits), packed) or not bits[offsets[:-1]].all():
            raise damaged(f"word starts are not one bit for each of {len(tokens)} tokens, set where a document begins")
    if "sentences.npy" in contents:
        sentences = array("sentences.npy", np.dtype("<u4")).astype(np.int64)
        if (np.diff(sentences) <= 0).any() or not np.isin(offsets, sentences).all() or sentences[-1] != len(tokens):
            raise damaged("sentence offsets do not include every document's boundary in order")
    return np.diff(offsets)
