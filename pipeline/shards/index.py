"""The index beside a shard's tar: lengths and places of its documents, without their tokens.

Letters: D documents of a shard, B blocks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.shards.files import CorpusFiles
from pipeline.shards.layout import document_starts, parse_index, record_borders, shard_name, token_dtype
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
    """Block table: first document, first item, checksum, (B,)."""

    borders: NDArray[np.int64]
    """First byte of every block's record in the tar, and of the end mark, (B+1,)."""

    item_bytes: int
    """Size of a token on disk: 2 or 4."""

    def block_of(self, documents: NDArray[np.integer]) -> NDArray[np.int64]:
        """Block of every document, int64 of the same shape."""
        return np.searchsorted(self.blocks["first_document"], documents, side="right") - 1


def read_index(files: CorpusFiles, split: str, number: int, manifest: Manifest) -> ShardIndex:
    """Read one index and hold it against the manifest.

    Raises:
        UserError: missing, damaged, of another shard or version, or counts that differ from the manifest's.
    """
    table = manifest.splits[split]
    name, sha256 = f"{shard_name(split, number)}.idx", table.index_sha256_of(number)
    path = files.describe(name)
    try:
        content = files.read(name, sha256)
    except FileNotFoundError:
        raise UserError(f"The shard index {path} does not exist. {WAY_OUT}") from None
    found_sha256 = hashlib.sha256(content).hexdigest()
    if found_sha256 != sha256:
        raise UserError(
            f"{path} has sha256 {found_sha256}; the manifest says {sha256}: it is damaged, or the index of another "
            f"shard. {WAY_OUT}"
        )
    item_bytes, lengths, blocks = parse_index(content, path)
    found = (len(lengths), int(lengths.sum(dtype=np.int64)), item_bytes)
    expected = (int(table.documents[number]), int(table.tokens[number]), token_dtype(manifest.vocab_size).itemsize)
    if found != expected:
        raise UserError(
            f"{path} lists {found[0]} documents and {found[1]} tokens of {found[2]} bytes; the manifest says "
            f"{expected[0]} documents and {expected[1]} tokens of {expected[2]} bytes. {WAY_OUT}"
        )
    num_bytes = int(table.bytes[number])
    if not lengths.all():
        raise UserError(f"{path}: document {int(lengths.argmin())} of the shard has no tokens. {WAY_OUT}")
    _check_blocks_cover(path, blocks, len(lengths))
    index = ShardIndex(
        lengths=lengths,
        starts=document_starts(lengths, blocks),
        blocks=blocks,
        borders=record_borders(blocks, item_bytes, num_bytes),
        item_bytes=item_bytes,
    )
    _check_places(path, index, num_bytes)
    return index


def _check_blocks_cover(path: str, blocks: NDArray[np.void], num_documents: int) -> None:
    borders = np.append(blocks["first_document"].astype(np.int64), num_documents)
    if borders[0] != 0 or (np.diff(borders) <= 0).any():
        raise UserError(f"{path}: the blocks do not cover its {num_documents} documents in order. {WAY_OUT}")


def _check_places(path: str, index: ShardIndex, num_bytes: int) -> None:
    """Refuse an index that its writer got wrong: no document may end after its block's record."""
    if not len(index.blocks):
        return
    last = np.append(index.blocks["first_document"][1:].astype(np.int64), len(index.lengths)) - 1  # (B,)
    end_bytes = (index.starts[last] + index.lengths[last]) * index.item_bytes
    # A place beyond any file could overflow when it is turned into bytes.
    outside = (index.blocks["first_item"] > num_bytes) | (index.borders[:-1] < 0) | (end_bytes > index.borders[1:])
    if outside.any():
        raise UserError(f"{path}: documents lie outside their blocks in the {num_bytes} bytes of the tar. {WAY_OUT}")
