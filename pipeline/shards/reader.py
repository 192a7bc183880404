"""Reading shards: lengths from the index alone, tokens by memory map, documents addressed without untarring.

Letters: D documents of a shard, B blocks, N sentences of a document.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.shards.files import CorpusFiles
from pipeline.shards.layout import (
    NPY_HEADER_BYTES,
    TAR_BLOCK_BYTES,
    document_starts,
    padded,
    parse_index,
    shard_name,
    token_dtype,
)
from pipeline.shards.manifest import Manifest

WAY_OUT: Final = "Run `pretrain corpus verify` on the corpus, then restore the file or build the corpus again."


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The index beside a tar: what planning needs, without the tokens."""

    lengths: NDArray[np.uint32]
    """Tokens of every document, (D,)."""

    starts: NDArray[np.int64]
    """First item of every document in the flat token array over the whole tar, (D,)."""

    blocks: NDArray[np.void]
    """Block table: first document, first item, (B,)."""

    item_bytes: int
    """Size of a token on disk: 2 or 4."""


def read_index(files: CorpusFiles, split: str, number: int, manifest: Manifest) -> ShardIndex:
    """Read one index and hold it against the manifest's counts.

    Raises:
        UserError: missing, damaged, of another version, or counts that differ from the manifest's.
    """
    name = f"{shard_name(split, number)}.idx"
    path = files.describe(name)
    try:
        content = files.read(name)
    except FileNotFoundError:
        raise UserError(f"The shard index {path} does not exist. {WAY_OUT}") from None
    item_bytes, lengths, blocks = parse_index(content, path)
    table = manifest.splits[split]
    found = (len(lengths), int(lengths.sum(dtype=np.int64)), item_bytes)
    expected = (int(table.documents[number]), int(table.tokens[number]), token_dtype(manifest.vocab_size).itemsize)
    if found != expected:
        raise UserError(
            f"{path} lists {found[0]} documents and {found[1]} tokens of {found[2]} bytes; the manifest says "
            f"{expected[0]} documents and {expected[1]} tokens of {expected[2]} bytes. {WAY_OUT}"
        )
    first_documents = blocks["first_document"].astype(np.int64)
    in_order = len(blocks) > 0 and first_documents[0] == 0 and (np.diff(first_documents) > 0).all()
    if len(lengths) and not (in_order and first_documents[-1] < len(lengths)):
        raise UserError(f"{path}: the blocks do not cover its {len(lengths)} documents in order. {WAY_OUT}")
    starts = document_starts(lengths, blocks)
    end_item = int(table.bytes[number]) // item_bytes
    if len(starts) and (starts + lengths).max() > end_item:
        raise UserError(f"{path}: documents end after the {table.bytes[number]} bytes of the tar. {WAY_OUT}")
    return ShardIndex(lengths=lengths, starts=starts, blocks=blocks, item_bytes=item_bytes)


class Shard:
    """One open shard: a read-only memory map and its index."""

    def __init__(self, path: str, index: ShardIndex, tokens: NDArray[np.unsignedinteger]) -> None:
        self.path = path
        """Where it is, for messages."""
        self.index = index
        self.tokens = tokens
        """The whole tar as one flat uint16 or uint32 array; document ``d`` is ``tokens[starts[d]:][:lengths[d]]``."""
        self._members: dict[int, dict[str, tuple[int, int]]] = {}

    @classmethod
    def open(cls, files: CorpusFiles, split: str, number: int, manifest: Manifest, verify: bool = False) -> Self:
        """Map a shard.

        Args:
            verify: also compare the sha256, which reads the whole file.

        Raises:
            UserError: missing, of another size than the manifest says (truncated), another sha256, or a bad index.
        """
        name = f"{shard_name(split, number)}.tar"
        path = files.describe(name)
        index = read_index(files, split, number, manifest)
        table = manifest.splits[split]
        expected, sha256 = int(table.bytes[number]), table.sha256_of(number)
        try:
            opened = files.open(name, expected, sha256)
        except FileNotFoundError:
            raise UserError(f"The shard {path} does not exist. {WAY_OUT}") from None
        with opened as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes != expected:
                raise UserError(f"{path} has {num_bytes} bytes; the manifest says {expected}. {WAY_OUT}")
            if hasattr(os, "posix_fadvise"):
                # Random first touches of cold pages are many times slower than one read-ahead of the file.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if verify:
            check_sha256(path, hashlib.sha256(mapped).hexdigest(), sha256)
        return cls(path, index, np.frombuffer(mapped, dtype=f"<u{index.item_bytes}"))

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.index.lengths)

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of every document, (D,)."""
        return self.index.lengths

    def read(self, document: int, begin: int = 0, end: int | None = None) -> NDArray[np.unsignedinteger]:
        """Tokens ``begin .. end-1`` of a document: a read-only view of the map."""
        length = int(self.index.lengths[document])
        end = length if end is None else end
        if not 0 <= begin <= end <= length:
            raise IndexError(f"{self.path}: tokens {begin}..{end} of document {document}, which has {length}")
        start = int(self.index.starts[document])
        return self.tokens[start + begin : start + end]

    def document_ids(self, documents: Iterable[int]) -> list[str]:
        """Names of documents, in the order asked for; every block's list is parsed once a call."""
        parsed: dict[int, list[str]] = {}
        names = []
        for document in documents:
            block = self._block_of(document)
            if block not in parsed:
                parsed[block] = json.loads(self._member(block, "ids.json"))
            names.append(parsed[block][document - int(self.index.blocks["first_document"][block])])
        return names

    def sentence_starts(self, document: int) -> NDArray[np.int64]:
        """First token of every sentence of a document, within the document, (N,).

        Raises:
            UserError: the corpus was built without sentences.
        """
        block = self._block_of(document)
        if "sentences.npy" not in self._block_members(block):
            raise UserError(
                f"{self.path} has no sentence offsets: build the corpus again with `shards.sentences: true` "
                "for objectives that need sentences."
            )
        sentences = np.frombuffer(self._member(block, "sentences.npy"), "<u4", offset=NPY_HEADER_BYTES).astype(np.int64)
        begin = int(self.index.starts[document]) - int(self.index.blocks["first_item"][block])
        end = begin + int(self.index.lengths[document])
        first, last = np.searchsorted(sentences, [begin, end])
        return sentences[first:last] - begin

    def _block_of(self, document: int) -> int:
        if not 0 <= document < self.documents:
            raise IndexError(f"{self.path} has no document {document}; it has {self.documents}")
        return int(np.searchsorted(self.index.blocks["first_document"], document, side="right")) - 1

    def _member(self, block: int, ending: str) -> bytes:
        offset, size = self._block_members(block)[ending]
        return self.tokens.view(np.uint8)[offset : offset + size].tobytes()

    def _block_members(self, block: int) -> dict[str, tuple[int, int]]:
        """Offset and size in bytes of a block's members by ending, found by walking its few tar headers."""
        if block in self._members:
            return self._members[block]
        content = self.tokens.view(np.uint8)
        offset = (
            int(self.index.blocks["first_item"][block]) * self.index.item_bytes - NPY_HEADER_BYTES - TAR_BLOCK_BYTES
        )
        found: dict[str, tuple[int, int]] = {}
        while (header := content[offset : offset + TAR_BLOCK_BYTES].tobytes()).strip(b"\0"):
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except tarfile.HeaderError as error:
                raise UserError(f"{self.path}: block {block} has a damaged tar header ({error}). {WAY_OUT}") from None
            name, _, ending = info.name.partition(".")
            if name != f"{block:06d}":
                break
            found[ending] = (offset + TAR_BLOCK_BYTES, info.size)
            offset += TAR_BLOCK_BYTES + padded(info.size)
        self._members[block] = found
        return found


def check_sha256(path: str, found: str, expected: str) -> None:
    """Raise the UserError of a shard whose bytes changed."""
    if found != expected:
        raise UserError(f"{path} has sha256 {found}; the manifest says {expected}: its bytes have changed. {WAY_OUT}")
