"""Writing one shard: documents in, a deterministic tar of blocks and its index out.

Letters: D documents of a block, N sentences of a block, T tokens of a block.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64

from pipeline.base.files import fsync_directory, temporary_name, write_bytes_atomically
from pipeline.shards.layout import (
    BLOCK_ENTRY,
    MAX_DOCUMENT_TOKENS,
    NPY_HEADER_BYTES,
    TAR_BLOCK_BYTES,
    TAR_END,
    index_bytes,
    npy_bytes,
    pack_bits,
    padded,
    tar_header,
)


@dataclass(frozen=True)
class ShardFacts:
    """What the manifest keeps of a shard."""

    name: str
    """Split and number, e.g. ``train/00000``."""

    documents: int
    """Documents in the shard."""

    tokens: int
    """Tokens in the shard, without any special token that rows add later."""

    bytes: int
    """Size of the tar."""

    sha256: str
    """Hex digest of the tar."""

    index_sha256: str
    """Hex digest of the index."""


class ShardWriter:
    """Writes ``path`` (a .tar) and the .idx beside it; both appear whole at :meth:`close`, or not at all.

    The bytes depend on the documents, their order, ``dtype`` and ``block_tokens`` only.

    Args:
        path: e.g. ``DIR/train/00000.tar``; its directory is made.
        dtype: ``layout.token_dtype(vocab_size)``: uint16 or uint32.
        block_tokens: a record is closed at the first document that brings it to this many tokens.
    """

    def __init__(self, path: Path, dtype: np.dtype, block_tokens: int) -> None:
        if np.dtype(dtype) not in (np.dtype("<u2"), np.dtype("<u4")):
            raise ValueError(f"shards hold uint16 or uint32 tokens, not {dtype}")
        if block_tokens < 1:
            raise ValueError(f"block_tokens is {block_tokens}; at least 1 is needed")
        self.path = path
        self.dtype = np.dtype(dtype)
        self.block_tokens = block_tokens
        self.num_documents = 0
        self.num_tokens = 0
        self._given: tuple[bool, bool] | None = None  # sentences, words
        self._num_bytes = 0
        self._lone_index = False
        self._digest = hashlib.sha256()
        self._lengths: list[int] = []
        self._blocks: list[tuple[int, int, int]] = []
        self._record = xxh3_64()
        self._clear_block()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_name(path)
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - the writer is the context manager

    def add(
        self,
        document_id: str,
        tokens: NDArray,
        sentence_starts: NDArray | None = None,
        word_starts: NDArray[np.bool_] | None = None,
    ) -> None:
        """Append a document.

        Args:
            document_id: any text; read back only for people (`pretrain batch`).
            tokens: integers (T,), at least one, without special tokens.
            sentence_starts: integers (N,), increasing from 0, below T; or None, then for every document.
            word_starts: bool (T,), whether a token begins a word, the first does; or None, then for every document.

        Raises:
            ValueError: no tokens, an id that the dtype cannot hold, or sentences or words of another document.
        """
        tokens = np.asarray(tokens)
        self._check_tokens(document_id, tokens)
        self._check_given(document_id, sentence_starts is not None, word_starts is not None)
        if sentence_starts is not None:
            starts = np.asarray(sentence_starts).astype(np.int64)
            _check_sentences(document_id, starts, len(tokens))
            self._sentences.append(starts + self._offsets[-1])
        if word_starts is not None:
            _check_words(document_id, word_starts, len(tokens))
            self._words.append(word_starts)
        self._tokens.append(tokens.astype(self.dtype))
        self._offsets.append(self._offsets[-1] + len(tokens))
        self._ids.append(document_id)
        self._lengths.append(len(tokens))
        self.num_documents += 1
        self.num_tokens += len(tokens)
        if self._offsets[-1] >= self.block_tokens:
            self._write_block()

    def _check_tokens(self, document_id: str, tokens: NDArray) -> None:
        if tokens.ndim != 1 or not 0 < len(tokens) <= MAX_DOCUMENT_TOKENS or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"document {document_id!r}: tokens must be a 1-D integer array of 1 to {MAX_DOCUMENT_TOKENS} tokens, "
                f"got {tokens.dtype} of shape {tokens.shape}"
            )
        largest = np.iinfo(self.dtype).max
        if int(tokens.min()) < 0 or int(tokens.max()) > largest:
            raise ValueError(f"document {document_id!r}: token ids must lie in 0..{largest} for {self.dtype}")

    def _check_given(self, document_id: str, sentences: bool, words: bool) -> None:
        if self._given not in (None, (sentences, words)):
            raise ValueError(
                f"document {document_id!r}: give sentence starts and word starts for every document of a shard, or "
                "for none"
            )
        self._given = (sentences, words)

    def close(self) -> ShardFacts:
        """Publish tar and index (fsync, rename) and return what the manifest keeps."""
        try:
            if self._ids:
                self._write_block()
            self._write(TAR_END)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            blocks = np.array(self._blocks, BLOCK_ENTRY)
            index = index_bytes(self.dtype.itemsize, np.array(self._lengths, np.uint32), blocks)
            # The index first: whoever finds a tar finds its index.
            write_bytes_atomically(self.path.with_suffix(".idx"), index)
            self._lone_index = True
            os.replace(self._temporary, self.path)
            self._lone_index = False
            fsync_directory(self.path.parent)
        except BaseException:
            self.discard()
            raise
        name = f"{self.path.parent.name}/{self.path.stem}"
        return ShardFacts(
            name=name,
            documents=self.num_documents,
            tokens=self.num_tokens,
            bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    def discard(self) -> None:
        """Give up: nothing of this shard stays on disk."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
        if self._lone_index:
            self.path.with_suffix(".idx").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the shard if the caller has not; after an exception, discards it."""
        if self._file.closed:
            return
        if kind is None:
            self.close()
        else:
            self.discard()

    def _clear_block(self) -> None:
        self._tokens: list[NDArray] = []
        self._sentences: list[NDArray] = []
        self._words: list[NDArray[np.bool_]] = []
        self._offsets: list[int] = [0]
        self._ids: list[str] = []

    def _write_block(self) -> None:
        name = f"{len(self._blocks):06d}"
        first_item = (self._num_bytes + TAR_BLOCK_BYTES + NPY_HEADER_BYTES) // self.dtype.itemsize
        self._record.reset()
        self._write_member(f"{name}.tokens.npy", npy_bytes(np.concatenate(self._tokens)))
        self._write_member(f"{name}.documents.npy", npy_bytes(np.array(self._offsets, "<u4")))
        if self._sentences:
            sentences = np.append(np.concatenate(self._sentences), self._offsets[-1])
            self._write_member(f"{name}.sentences.npy", npy_bytes(sentences.astype("<u4")))
        if self._words:
            self._write_member(f"{name}.words.npy", npy_bytes(pack_bits(np.concatenate(self._words))))
        ids = json.dumps(self._ids, ensure_ascii=False, separators=(",", ":"))
        self._write_member(f"{name}.ids.json", ids.encode("utf-8", "surrogatepass"))
        self._blocks.append((self.num_documents - len(self._ids), first_item, self._record.intdigest()))
        self._clear_block()

    def _write_member(self, name: str, content: bytes) -> None:
        self._write(tar_header(name, len(content)))
        self._write(content)
        self._write(bytes(padded(len(content)) - len(content)))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._record.update(content)
        self._num_bytes += len(content)


def _check_sentences(document_id: str, starts: NDArray[np.int64], num_tokens: int) -> None:
    if not len(starts) or starts[0] != 0 or starts[-1] >= num_tokens or (np.diff(starts) <= 0).any():
        raise ValueError(
            f"document {document_id!r}: sentence starts must increase from 0 and stay below {num_tokens}, its number "
            "of tokens"
        )


def _check_words(document_id: str, starts: NDArray[np.bool_], num_tokens: int) -> None:
    if starts.dtype != np.bool_ or starts.shape != (num_tokens,) or not starts[0]:
        raise ValueError(
            f"document {document_id!r}: word starts must be {num_tokens} booleans, one a token, the first of them True"
        )
